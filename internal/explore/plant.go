package explore

// bug is a mistake that the tests plant, to see that it is found.
type bug uint8

const (
	noBug bug = iota
	claimInLease
	destroyOnClaim
	resumeUnconfirmed
	openOnLoss
	unknownWinsA
	unknownWinsB
	releaseEarly
	forgetArmed
	bothWin
	deafTimersB
	dropOnLoss
	unsealed
	finalForgotten
	forgetRan
)

func (x *explorer) bug(b bug) bool { return x.cfg.plant == b }
