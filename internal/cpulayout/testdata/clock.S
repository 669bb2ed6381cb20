# A guest without an operating system: every CPU registers a kvmclock page and
# then writes its time stamp counter, again and again, with one store of 8 bytes, to
# 0x200000 + 4096 * its APIC id. Under TCG, which has no such page, the MSR is ignored.
#
# Build: as --32 clock.S -o clock.o && ld -m elf_i386 -Ttext 0x100000 --oformat binary -e _start clock.o -o clock.bin
.intel_syntax noprefix
.code32
.globl _start
_start:
	.long 0x1BADB002, 0x00010000, -(0x1BADB002 + 0x00010000)
	.long _start, _start, _end, _end, entry
entry:
	mov esp, 0x9000
	cli
	mov esi, offset tramp
	mov edi, 0x8000
	mov ecx, offset tramp_end - tramp
	rep movsb
	mov edi, 0xfee00000
	mov dword ptr [edi+0xf0], 0x1ff
	mov dword ptr [edi+0x300], 0x000c4500 # INIT to all but me
	mov ecx, 20000
1:	dec ecx
	jnz 1b
	mov dword ptr [edi+0x300], 0x000c4608 # start at 0x8000
	mov ecx, 20000
2:	dec ecx
	jnz 2b
	mov dword ptr [edi+0x300], 0x000c4608
worker:
	mov edi, 0xfee00020
	mov ebp, [edi]
	shr ebp, 24               # ebp: my APIC id
	mov eax, ebp
	shl eax, 6
	add eax, 0x300001         # my kvmclock page, and "on"
	xor edx, edx
	mov ecx, 0x4b564d01
	wrmsr
	mov esi, ebp
	shl esi, 12
	add esi, 0x200000
3:	rdtsc
	mov ebx, eax
	mov ecx, edx
	mov eax, [esi]
	mov edx, [esi+4]
	lock cmpxchg8b [esi]      # nobody else writes there, so it is a store
	jmp 3b
.code16
tramp:
	cli
	xor ax, ax
	mov ds, ax
	lgdt [0x8000 + gdtr - tramp]
	mov eax, cr0
	or al, 1
	mov cr0, eax
	.byte 0x66, 0xea
	.long 0x8000 + prot - tramp
	.word 8
.code32
prot:
	mov ax, 16
	mov ds, ax
	mov es, ax
	mov ss, ax
	mov eax, offset worker
	jmp eax
.align 8
gdt:	.quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff
gdtr:	.word 23
	.long 0x8000 + gdt - tramp
tramp_end:
_end:
