package arbiter

import "fmt"

// decision looks at the claimed generation (at) and at the highest one with a
// record (top) and returns the step to take; 0 means that nothing is to be done.
// It is asked again, with newer records, when another step got there first.
type decision func(at, top chain) (Step, error)

// holds reports whether c's host took the last step. The same host name on
// another machine is an error: both would believe that they hold the claim.
func holds(at chain, c Claim, machine string) (bool, error) {
	if at.next == 0 || at.last.Host != c.Host {
		return false, nil
	}
	if at.last.Machine != machine {
		return false, fmt.Errorf("%w: another machine also calls itself %q: set `host` in its configuration",
			ErrStorage, c.Host)
	}
	return true, nil
}

// claiming decides a claim and leaves the answer in verdict. Only with take set
// a free generation is taken; otherwise it is ErrOperator.
func claiming(c Claim, machine string, take bool, verdict *Verdict) decision {
	return func(at, top chain) (Step, error) {
		if top.generation > c.Generation && !top.free() {
			*verdict = Verdict{Holder: top.last.Host, Step: top.last.Step}
			return 0, nil
		}
		if !at.free() {
			ours, err := holds(at, c, machine)
			*verdict = Verdict{Won: ours, Holder: at.last.Host, Step: at.last.Step}
			return 0, err
		}
		if !take {
			return 0, ErrOperator
		}
		*verdict = Verdict{Won: true, Holder: c.Host, Step: StepClaimed}
		return StepClaimed, nil
	}
}

// confirming decides whether the holder may be recorded as RUNNING.
func confirming(c Claim, machine string) decision {
	return func(at, top chain) (Step, error) {
		ours, err := holds(at, c, machine)
		switch {
		case err != nil:
			return 0, err
		case at.free():
			return 0, fmt.Errorf("%w: nobody holds it", ErrNotHolder)
		case !ours:
			return 0, fmt.Errorf("%w: held by %s (%s)", ErrNotHolder, at.last.Host, at.last.Step)
		case top.generation > c.Generation && !top.free():
			return 0, fmt.Errorf("%w: %s holds generation %d", ErrNotHolder, top.last.Host, top.generation)
		case at.last.Step == StepRunning:
			return 0, nil
		}
		return StepRunning, nil
	}
}

// withdrawing decides whether a right may be handed back.
func withdrawing(c Claim, machine string) decision {
	return func(at, _ chain) (Step, error) {
		if at.free() {
			return 0, nil
		}
		ours, err := holds(at, c, machine)
		switch {
		case err != nil:
			return 0, err
		case !ours:
			return 0, fmt.Errorf("%w: held by %s (%s)", ErrNotHolder, at.last.Host, at.last.Step)
		case at.last.Step == StepRunning:
			return 0, ErrRunning
		}
		return StepWithdrawn, nil
	}
}

// revoking decides whether a right may be taken from whoever holds it.
func revoking() decision {
	return func(at, _ chain) (Step, error) {
		switch {
		case at.free():
			return 0, nil
		case at.last.Step == StepRunning:
			return 0, fmt.Errorf("%w: %s", ErrRunning, at.last.Host)
		}
		return StepWithdrawn, nil
	}
}
