# A guest without an operating system: every CPU writes pseudo-random words and
# pages. The words from 0x20 are set by qmptest.Payload before the start.
#
# Build: as --32 guest.S -o guest.o && ld -m elf_i386 -Ttext 0x100000 --oformat binary -e _start guest.o -o guest.bin
.intel_syntax noprefix
.code32
.globl _start
_start:
	.long 0x1BADB002, 0x00010000, -(0x1BADB002 + 0x00010000)
	.long _start, _start, _end, _end, entry
delay:	.long 2000          # 0x20
base:	.long 0x1000000      # 0x24
npages:	.long 4096        # 0x28
flags:	.long 0            # 0x2c  1: start APs, 2: device writes, 4: vga
dma:	.long 0, 0, 0, 0     # 0x30
ncpu:	.long 0            # 0x40
	.long 0, 0, 0
entry:
	mov esp, 0x9000
	cli
	test dword ptr [flags], 1
	jz worker
	mov esi, offset tramp
	mov edi, 0x8000
	mov ecx, offset tramp_end - tramp
	rep movsb
	mov edi, 0xfee00000
	mov dword ptr [edi+0xf0], 0x1ff
	mov dword ptr [edi+0x300], 0x000c4500
	mov ecx, 10000000
1:	dec ecx
	jnz 1b
	mov dword ptr [edi+0x300], 0x000c4608
	mov ecx, 1000000
2:	dec ecx
	jnz 2b
	mov dword ptr [edi+0x300], 0x000c4608
worker:
	mov ebp, 1
	lock xadd [ncpu], ebp     # ebp: my index
	mov esi, ebp
	shl esi, 12
	add esi, 0x200000         # esi: my tick page
	imul ebx, ebp, 0x9e3779b1
	add ebx, 0x12345677       # ebx: xorshift state
loop:
	mov ecx, [delay]
3:	dec ecx
	jnz 3b
	inc dword ptr [esi]
	call next
	mov eax, ebx
	xor edx, edx
	div dword ptr [npages]
	shl edx, 12
	add edx, [base]
	mov edi, edx              # edi: page
	call next
	mov eax, ebx
	and eax, 0xffc
	mov [edi+eax], ebx
	call next
	test ebx, 0xf0
	jnz 4f
	mov eax, ebx              # now and then a whole page
	mov ecx, 1024
	push edi
	rep stosd
	pop edi
4:	test dword ptr [flags], 4
	jz 5f
	mov eax, [esi]
	and eax, 0xffc
	mov [0xb8000+eax], ebx
5:	test dword ptr [flags], 2
	jz loop
	test ebp, ebp
	jnz loop
	test ebx, 0xf00
	jnz loop
	mov eax, 0x0a001900       # be32: select 0x19, SELECT|READ
	mov [dma], eax
	mov dword ptr [dma+4], 0x80000000 # be32 128
	mov dword ptr [dma+8], 0
	mov eax, edi
	add eax, 0x340
	bswap eax
	mov [dma+12], eax
	mov dx, 0x514
	xor eax, eax
	out dx, eax
	mov dx, 0x518
	mov eax, offset dma
	bswap eax
	out dx, eax
	jmp loop
next:
	mov eax, ebx
	shl eax, 13
	xor ebx, eax
	mov eax, ebx
	shr eax, 17
	xor ebx, eax
	mov eax, ebx
	shl eax, 5
	xor ebx, eax
	ret
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
	mov eax, 1
	lock xadd [0x8000 + stk - tramp], eax
	shl eax, 8
	lea esp, [eax + 0x9100]
	mov eax, offset worker
	jmp eax
.align 8
gdt:	.quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff
gdtr:	.word 23
	.long 0x8000 + gdt - tramp
stk:	.long 0
tramp_end:
_end:
