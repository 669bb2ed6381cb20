package virt

import (
	"strings"
	"testing"
)

// TestJudgeClock judges the clock of a plain domain with KVM and what is given.
func TestJudgeClock(t *testing.T) {
	const noHPET = "<timer name='hpet' present='no'/>"
	const invtsc = "<feature policy='require' name='invtsc'/>"
	for _, c := range []struct {
		name                  string
		timers, cpu, features string
		want                  ClockAdvice // flags and level
		text, remedy          []string    // words that must be there; none: the remedy must be empty
	}{
		{"best", noHPET, "", "", ClockAdvice{KVMClock: true, Level: OK}, []string{"kvmclock: corrected at each resume"}, nil},
		{"said", noHPET + "<timer name='kvmclock' present='yes'/>", "", "", ClockAdvice{KVMClock: true, Level: OK}, []string{"kvmclock"}, nil},
		{"nothing said", "", "", "", ClockAdvice{KVMClock: true, HPET: true, Level: OK}, []string{"kvmclock", "hpet: stands still"}, []string{"<timer name='hpet' present='no'/>"}},
		{"other timers", noHPET + "<timer name='rtc' tickpolicy='catchup'/><timer name='pit' tickpolicy='delay'/>", "", "",
			ClockAdvice{KVMClock: true, Level: OK}, []string{"kvmclock"}, nil},
		{"no kvmclock", noHPET + "<timer name='kvmclock' present='no'/>", "", "", ClockAdvice{Level: Warn},
			[]string{"no kvmclock", "not corrected"}, []string{"<timer name='kvmclock' present='yes'/>"}},
		{"no kvmclock, hpet", "<timer name='kvmclock' present='no'/>", "", "", ClockAdvice{HPET: true, Level: Warn},
			[]string{"no kvmclock", "hpet"}, []string{"name='kvmclock'", "name='hpet'"}},
		{"feature off", noHPET, "<feature policy='disable' name='kvmclock'/>", "", ClockAdvice{Level: Warn}, []string{"no kvmclock"}, []string{"kvmclock"}},
		{"hidden", noHPET, "", "<kvm><hidden state='on'/></kvm>", ClockAdvice{Level: Warn}, []string{"no kvmclock"}, []string{"hides KVM"}},
		{"not hidden", noHPET, "", "<kvm><hidden state='off'/></kvm>", ClockAdvice{KVMClock: true, Level: OK}, []string{"kvmclock"}, nil},
		{"Windows", noHPET + "<timer name='hypervclock' present='yes'/>", "", "", ClockAdvice{KVMClock: true, HyperV: true, Level: OK}, []string{"kvmclock"}, nil},
		{"Hyper-V alone", noHPET + "<timer name='kvmclock' present='no'/><timer name='hypervclock' present='yes'/>", "", "",
			ClockAdvice{HyperV: true, Level: OK}, []string{"Hyper-V's clock"}, []string{"name='kvmclock'"}},
		{"invtsc", noHPET, invtsc, "", ClockAdvice{KVMClock: true, TSC: true, Level: Warn},
			[]string{"kvmclock", "TSC (invtsc; Linux prefers it): runs on by itself", "rate"}, []string{"<timer name='tsc' frequency=", "invtsc"}},
		{"invtsc at a rate", noHPET + "<timer name='tsc' frequency='3000000000'/>", invtsc, "", ClockAdvice{KVMClock: true, TSC: true, Level: OK},
			[]string{"TSC (invtsc"}, nil},
		{"invtsc forbidden", noHPET, "<feature policy='disable' name='invtsc'/>", "", ClockAdvice{KVMClock: true, Level: OK}, []string{"kvmclock"}, nil},
		{"TSC alone, hpet", "<timer name='kvmclock' present='no'/><timer name='tsc' frequency='3000000000'/>", invtsc, "",
			ClockAdvice{TSC: true, HPET: true, Level: Warn}, []string{"no kvmclock", "TSC", "hpet"}, []string{"name='kvmclock'", "name='hpet'"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			doc := strings.NewReplacer("type='qemu' id", "type='kvm' id",
				"<clock offset='utc'/>", "<clock offset='utc'>"+c.timers+"</clock>",
				"</cpu>", c.cpu+"</cpu>", "</features>", c.features+"</features>").Replace(readFile(t, "testdata/plain.xml"))
			got := JudgeClock(doc)
			flags := ClockAdvice{KVM: got.KVM, KVMClock: got.KVMClock, HyperV: got.HyperV, TSC: got.TSC, HPET: got.HPET, Level: got.Level}
			if c.want.KVM = true; flags != c.want {
				t.Errorf("got %+v", got)
			}
			expectWords(t, got.Text, c.text)
			expectWords(t, got.Remedy, c.remedy)
			if len(c.remedy) == 0 && got.Remedy != "" || got.Level == Warn && got.Remedy == "" {
				t.Errorf("remedy %q", got.Remedy)
			}
			if f := got.Finding(); f != (Finding{"clock", got.Level, got.Text, got.Remedy}) || strings.Contains(f.Text+f.Remedy, "\n") {
				t.Errorf("finding %+v", f)
			}
		})
	}
}

func expectWords(t *testing.T, text string, words []string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%q says nothing of %q", text, w)
		}
	}
}

func TestJudgeClockWithoutKVM(t *testing.T) {
	got := JudgeClock(readFile(t, "testdata/plain.xml"))
	if got.KVM || got.KVMClock || got.Level != Warn || !strings.Contains(got.Text, "TCG: not corrected") || got.Remedy == "" {
		t.Errorf("got %+v", got)
	}
	if got := JudgeClock("<<"); got.Level != Fail || got.Remedy == "" {
		t.Errorf("no XML: %+v", got)
	}
}
