package virt

import (
	"strings"
	"testing"
)

// TestJudgeDevices judges a plain domain with one thing more.
func TestJudgeDevices(t *testing.T) {
	for _, c := range []struct {
		xml   string
		item  string
		level Level
		text  string
	}{
		{`<disk type='file' device='disk'><source file='/a'/><target dev='vda'/><readonly/></disk>`, "disk vda", OK, "read-only"},
		{`<disk type='file' device='cdrom'><source file='/a'/><target dev='sda'/><readonly/></disk>`, "disk sda", OK, "read-only"},
		{`<disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>`, "disk sda", OK, "empty"},
		{`<disk type='file' device='floppy'><source file='/a'/><target dev='fda'/></disk>`, "disk fda", Fail, "not replicated"},
		{`<disk type='file' device='floppy'><source file='/a'/><target dev='fda'/><readonly/></disk>`, "disk fda", OK, "read-only"},
		{`<disk type='block' device='lun'><source dev='/dev/sg0'/><target dev='sda'/></disk>`, "disk sda", Fail, "SCSI"},
		{`<disk type='vhostuser' device='disk'><source type='unix' path='/a'/><target dev='vda'/></disk>`, "disk vda", Fail, "another process"},
		{`<disk type='vhostvdpa' device='disk'><source dev='/dev/vhost-vdpa-0'/><target dev='vda'/></disk>`, "disk vda", Fail, "another process"},
		{`<disk type='nvme' device='disk'><source type='pci' namespace='1'><address domain='0' bus='1' slot='0' function='0'/></source><target dev='vda'/></disk>`, "disk vda", Fail, "NVMe"},
		{`<hostdev mode='subsystem' type='pci'><source><address domain='0' bus='1' slot='0' function='0'/></source></hostdev>`, "hostdev 0", Fail, "PCI"},
		{`<hostdev mode='subsystem' type='mdev' model='vfio-pci'><source><address uuid='5f0c1b1e-8c0f-4b0e-9a57-3a4d6a1f0001'/></source></hostdev>`, "hostdev 0", Fail, "mdev"},
		{`<hostdev mode='subsystem' type='usb'><source><vendor id='1'/><product id='2'/></source></hostdev>`, "hostdev 0", Fail, "USB"},
		{`<filesystem type='mount'><driver type='virtiofs'/><source dir='/a'/><target dir='b'/></filesystem>`, "filesystem b", Fail, "virtiofs"},
		{`<filesystem type='mount'><source dir='/a'/><target dir='b'/></filesystem>`, "filesystem b", Fail, "directory"},
		{`<memory model='dimm'><target><size unit='KiB'>1</size></target></memory>`, "memory device 0", Fail, "untested"},
		{`<memory model='nvdimm'><source><path>/a</path></source><target><size unit='KiB'>1</size></target></memory>`, "memory device 0", Fail, "persistent"},
		{`<memory model='virtio-mem'><target><size unit='KiB'>1</size></target></memory>`, "memory device 0", Fail, "untested"},
		{`<memory model='sgx-epc'><target><size unit='KiB'>1</size></target></memory>`, "memory device 0", Fail, "SGX"},
		{`<shmem name='a'><model type='ivshmem-plain'/></shmem>`, "shmem a", Fail, "shared"},
		{`<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>`, "tpm", Fail, "outside QEMU"},
		{`<redirdev bus='usb' type='spicevmc'/>`, "redirdev 0", Fail, "USB"},
		{`<smartcard mode='host'/>`, "smartcard", Fail, "outside QEMU"},
		{`<crypto model='virtio' type='qemu'><backend model='builtin'/></crypto>`, "crypto 0", Fail, "virtio-crypto"},
		{`<pstore backend='acpi-erst'><path>/a</path><size unit='KiB'>1</size></pstore>`, "pstore", Fail, "file"},
		{`<lease><lockspace>a</lockspace><key>b</key></lease>`, "lease 0", Fail, "lease"},
		{`<input type='evdev'><source dev='/dev/input/event1'/></input>`, "input 1", Fail, "input device"},
		{`<vsock model='virtio'><cid auto='no' address='3'/></vsock>`, "vsock", Warn, "context id"},
		{`<serial type='pty'><target port='0'/></serial>`, "serial 0", Warn, "output: not held"},
		{`<console type='pty'><target type='virtio' port='0'/></console>`, "console 0", Warn, "output: not held"},
		{`<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>`, "channel org.qemu.guest_agent.0", Warn, "output: not held"},
		{`<graphics type='vnc' port='-1' autoport='yes'/>`, "graphics 0", Warn, "output: not held"},
		{`<video><model type='qxl'/></video>`, "video 0", OK, "qxl"},
		{`<video><model type='virtio'><acceleration accel3d='yes'/></model></video>`, "video 0", Fail, "accelerated"},
		{`<video><driver name='vhostuser'/><model type='virtio'/></video>`, "video 0", Fail, "vhost-user"},
		{`<watchdog model='i6300esb' action='reset'/>`, "watchdog", OK, ""},
		{`<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>`, "rng", OK, ""},
		{`<memballoon model='virtio' autodeflate='on'/>`, "memballoon", OK, "virtio"},
		{`<panic model='isa'/>`, "panic", OK, ""},
		{`<iommu model='intel'/>`, "iommu", OK, ""},
		{`<telepathy model='virtio'/>`, "device telepathy", Fail, "does not know"},
	} {
		t.Run(c.item+"/"+string(c.level), func(t *testing.T) {
			plain := readFile(t, "testdata/plain.xml")
			expect(t, Judge(strings.Replace(plain, "</devices>", c.xml+"</devices>", 1)), c.item, c.level, c.text)
		})
	}
}

// TestJudgeInterfaces judges a plain domain with one interface.
func TestJudgeInterfaces(t *testing.T) {
	for _, c := range []struct {
		xml   string
		item  string
		level Level
		text  string
	}{
		{`<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/></interface>`, "interface 52:54:00:00:00:01", OK, "output: held"},
		{`<interface type='bridge'><source bridge='ovs'/><virtualport type='openvswitch'/></interface>`, "interface 0", OK, "output: held"},
		{`<interface type='bridge'><source network='a' portid='5f0c1b1e-8c0f-4b0e-9a57-3a4d6a1f0001' bridge='br0'/></interface>`, "interface 0", OK, "output: held"},
		{`<interface type='network'><source network='default' bridge='virbr0'/></interface>`, "interface 0", OK, "output: held"},
		{`<interface type='ethernet'><target dev='tap0'/></interface>`, "interface 0", OK, "output: held"},
		{`<interface type='direct'><source dev='eth0' mode='bridge'/></interface>`, "interface 0", Fail, "macvtap"},
		{`<interface type='direct'><source network='a' dev='eth0' mode='vepa'/></interface>`, "interface 0", Fail, "macvtap"},
		{`<interface type='user'/>`, "interface 0", Fail, "type user"},
		{`<interface type='user'><backend type='passt'/></interface>`, "interface 0", Fail, "type user"},
		{`<interface type='server'><source address='127.0.0.1' port='1'/></interface>`, "interface 0", Fail, "type server"},
		{`<interface type='client'><source address='127.0.0.1' port='1'/></interface>`, "interface 0", Fail, "type client"},
		{`<interface type='mcast'><source address='224.0.0.1' port='1'/></interface>`, "interface 0", Fail, "type mcast"},
		{`<interface type='udp'><source address='127.0.0.1' port='1'><local address='127.0.0.1' port='2'/></source></interface>`, "interface 0", Fail, "type udp"},
		{`<interface type='internal'><source name='a'/></interface>`, "interface 0", Fail, "type internal"},
		{`<interface type='null'/>`, "interface 0", Fail, "type null"},
		{`<interface type='vds'><source switchid='5f0c1b1e-8c0f-4b0e-9a57-3a4d6a1f0001' portid='1' portgroupid='a' connectionid='1'/></interface>`, "interface 0", Fail, "type vds"},
		{`<interface type='telepathy'/>`, "interface 0", Fail, "type (unknown)"},
		{`<interface type='vhostuser'><source type='unix' path='/a' mode='client'/></interface>`, "interface 0", Fail, "vhost-user"},
		{`<interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/></interface>`, "interface 0", Fail, "vDPA"},
		{`<interface type='hostdev'><source><address type='pci' domain='0' bus='1' slot='0' function='0'/></source></interface>`, "interface 0", Fail, "VFIO"},
	} {
		expect(t, Judge(withInterfaces(t, c.xml)), c.item, c.level, c.text)
	}
}

// TestJudgeDomain judges a plain domain with one thing different.
func TestJudgeDomain(t *testing.T) {
	for _, c := range []struct {
		name, old, new string
		item           string
		level          Level
		text           string
	}{
		{"kvm", "type='qemu'", "type='kvm'", "hypervisor", OK, "KVM"},
		{"xen", "type='qemu'", "type='xen'", "hypervisor", Fail, "xen"},
		{"arm", "arch='x86_64'", "arch='aarch64'", "machine", Fail, "aarch64"},
		{"i440fx", "pc-q35-7.2", "pc-i440fx-7.2", "machine", OK, "i440fx"},
		{"microvm", "pc-q35-7.2", "microvm", "machine", Warn, "untested"},
		{"isapc", "pc-q35-7.2", "isapc", "machine", Warn, "untested"},
		{"container", ">hvm<", ">exe<", "machine", Fail, "exe"},
		{"SMP", ">1</vcpu>", ">4</vcpu>", "vcpu", OK, "4 virtual CPUs"},
		{"passthrough", "<cpu mode='custom'", "<cpu mode='host-passthrough'", "cpu", Warn, "host-passthrough"},
		{"NUMA", "<cpu mode='custom'>", "<cpu mode='custom'><numa><cell id='0' cpus='0' memory='131072'/></numa>", "numa", OK, "1 guest"},
		{"huge pages", "<os>", "<memoryBacking><hugepages/></memoryBacking><os>", "memory", Fail, "huge pages"},
		{"memory file", "<os>", "<memoryBacking><source type='file'/></memoryBacking><os>", "memory", Fail, "file"},
		{"memfd", "<os>", "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking><os>", "memory", OK, "memfd"},
		{"slots", "<memory ", "<maxMemory slots='4' unit='KiB'>9999999</maxMemory><memory ", "memory slots", Warn, "hot-plugged"},
		{"UEFI", "</os>", "<loader readonly='yes' type='pflash'>/c</loader><nvram>/v</nvram></os>", "firmware", Fail, "variables"},
		{"writable flash", "</os>", "<loader type='pflash'>/c</loader></os>", "firmware", Fail, "flash"},
		{"stateless UEFI", "</os>", "<loader readonly='yes' type='pflash' stateless='yes'>/c</loader></os>", "firmware", OK, ""},
		{"SEV", "</domain>", "<launchSecurity type='sev'><policy>0x3</policy></launchSecurity></domain>", "launch security", Fail, "encrypted"},
		{"foreign argument", "</domain>", "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><q:arg value='-x'/></q:commandline></domain>", "qemu:commandline", Warn, "-x"},
		{"no XML", "<domain", "<<", "domain XML", Fail, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			plain := readFile(t, "testdata/plain.xml")
			changed := strings.Replace(plain, c.old, c.new, 1)
			if changed == plain && c.old != c.new {
				t.Fatalf("testdata/plain.xml has no %q", c.old)
			}
			expect(t, Judge(changed), c.item, c.level, c.text)
		})
	}
}

func expect(t *testing.T, findings []Finding, item string, level Level, text string) {
	t.Helper()
	for _, f := range findings {
		if f.Item == item {
			if f.Level != level || !strings.Contains(f.Text, text) {
				t.Errorf("got %+v", f)
			}
			if f.Level != OK && f.Remedy == "" {
				t.Errorf("no remedy: %+v", f)
			}
			return
		}
	}
	t.Errorf("nothing about %q in %+v", item, findings)
}

func TestJudgeOrdinaryDomains(t *testing.T) {
	for _, name := range []string{"testdata/plain.xml", "testdata/source.xml"} {
		for _, f := range Judge(readFile(t, name)) {
			if f.Level == Fail {
				t.Errorf("%s is refused: %+v", name, f)
			}
		}
	}
	// our own -incoming of an earlier life as a standby is nobody's foreign argument
	standby, err := StandbyXML(readFile(t, "testdata/plain.xml"), StandbyOptions{Protection: "p"})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range Judge(standby) {
		if f.Level == Fail || f.Item == "qemu:commandline" {
			t.Errorf("a former standby: %+v", f)
		}
	}
}

func TestLockManager(t *testing.T) {
	for conf, want := range map[string]Level{
		"":                                       OK,
		"#lock_manager = \"lockd\"\n":            OK,
		"lock_manager = \"nop\"\n":               OK,
		"lock_manager = \"lockd\"\n":             Fail,
		"  lock_manager='sanlock' # site rule\n": Fail,
		"lock_manager = \"lockd\"\nlock_manager = \"nop\"": OK,
		"my_lock_manager = \"lockd\"":                      OK,
	} {
		name, err := lockManager(strings.NewReader(conf))
		if got := lockManagerFinding(name).Level; err != nil || got != want {
			t.Errorf("%q: %s, %v", conf, got, err)
		}
	}
	for _, conf := range []string{"lock_manager = lockd", `lock_manager = "lockd`, "lock_manager ="} {
		if name, err := lockManager(strings.NewReader(conf)); err == nil {
			t.Errorf("%q: %q without error", conf, name)
		}
	}
}
