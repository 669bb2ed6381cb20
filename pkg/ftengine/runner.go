package ftengine

import "context"

// Machine is what Primary and Backup have in common.
type Machine interface{ Step(Event) []Action }

// Run feeds events to m and performs the actions it asks for, strictly in
// their order, until ctx ends, events is closed or Finish was performed. do
// must return soon: slow work is started there and reports by an event.
// after, if not nil, is called after each event was dealt with, for those who
// show the machine's state. Run owns m: nobody else may touch it meanwhile.
func Run(ctx context.Context, m Machine, first []Action, events <-chan Event, do func(Action), after func()) {
	if perform(first, do, after) {
		return
	}
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-events:
			if !ok || perform(m.Step(e), do, after) {
				return
			}
		}
	}
}

func perform(acts []Action, do func(Action), after func()) (finished bool) {
	for _, a := range acts {
		do(a)
		if _, ok := a.(Finish); ok {
			finished = true
		}
	}
	if after != nil {
		after()
	}
	return finished
}
