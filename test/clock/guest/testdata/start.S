# How the processors of the guest come up. The image is the machine's firmware: the
# first processor begins at its reset vector, which jumps to the image's first
# byte, and the others are sent there. All go from real to long mode, with the
# first 4 GiB mapped as they are, and end in guest_main. That looks at the clock
# without privileges: KVM without help of the hardware (pvm) runs only such code at
# full speed, and no KVM minds.
.intel_syntax noprefix
.set rom, 0xffff0000 - 0x100000   # where the image is, minus where it is linked and copied to

.section .head, "ax"
.code16
.globl _start
_start:
	jmp real
.org 0x10
.globl payload
payload:                          # set by guest.Payload before the start
	.long 0, 0, 0, 0
real:
	cli
	.byte 0x2e                       # cs:
	data32 lgdt [rom_gdtr - _start]
	mov eax, cr0
	or al, 1
	mov cr0, eax
	.byte 0x66, 0xea                 # far jump, 32 bits
	.long protected + rom
	.word 8
.align 4
rom_gdtr:
	.word 47
	.long gdt + rom

.code32
protected:
	mov ax, 16
	mov ds, ax
	mov es, ax
	mov ss, ax
	mov ecx, 0x1b
	rdmsr
	test ah, 1                       # the first processor?
	jz 4f
	cld
	mov esi, 0xffff0000
	mov edi, 0x100000
	mov ecx, offset _edata - 0x100000 + 3
	shr ecx, 2
	rep movsd
	mov dword ptr [pml4], offset pdpt + 7
	mov edi, offset pdpt
	mov eax, offset pds + 7
	mov ecx, 4
1:	mov [edi], eax
	add edi, 8
	add eax, 4096
	dec ecx
	jnz 1b
	mov edi, offset pds
	mov eax, 0x87                    # 2 MiB, may be written, by all
	mov ecx, 2048
2:	mov [edi], eax
	add edi, 8
	add eax, 0x200000
	dec ecx
	jnz 2b
4:	mov eax, offset into_long
	jmp eax
into_long:
	lgdt [gdtr]
	mov eax, cr4
	or eax, 0x20                     # PAE
	mov cr4, eax
	mov eax, offset pml4
	mov cr3, eax
	mov ecx, 0xc0000080              # EFER: LME, SCE
	rdmsr
	or eax, 0x101
	wrmsr
	mov eax, 0x80010033              # PG, WP, NE, MP, ET, PE
	mov cr0, eax
	.byte 0xea
	.long long
	.word 24

.code64
.text
# A processor takes the next number, and the stack that belongs to it.
long:
	mov edi, 1
	lock xadd [started], edi
	cmp edi, 8
	jae 2f
	mov esp, edi
	shl esp, 12
	add esp, offset stacks + 4096
	call guest_main
2:	hlt
	jmp 2b

# Gives up privileges, and interrupts.
.globl drop
drop:
	mov ecx, 0xc0000081              # STAR: the selectors of sysret
	xor eax, eax
	mov edx, 27 << 16
	wrmsr
	pop rcx
	mov r11d, 2
	sysretq

.data
.align 8
gdt:	.quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00af9b000000ffff
	.quad 0x00cff3000000ffff, 0x00affb000000ffff
gdtr:	.word 47
	.long gdt
.align 4
started: .long 0

.bss
.align 4096
pml4:	.skip 4096
pdpt:	.skip 4096
pds:	.skip 4 * 4096
stacks:	.skip 8 * 4096
