# uint64 run(struct state *s): loads every register from s, spins s->spin times
# (or executes one system call if spin is 0), and stores every register to s.
# Offsets are those of struct state in target.c.
	.set IN_GPR, 0
	.set OUT_GPR, 128
	.set IN_YMM, 256
	.set OUT_YMM, 768
	.set IN_X87, 1280
	.set OUT_X87, 1344
	.set SPIN, 1408
	.set RED, 1416
	.text
	.globl run
	.type run, @function
run:
	push %rbx
	push %rbp
	push %r12
	push %r13
	push %r14
	push %r15
	push %rdi                       # s is at (%rsp) from here on
	.irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
	vmovups IN_YMM+32*\i(%rdi), %ymm\i
	.endr
	fninit
	.irp i, 0,1,2,3,4,5,6,7
	fldl IN_X87+8*\i(%rdi)
	.endr
	mov SPIN(%rdi), %rax
	mov %rax, -16(%rsp)             # loop counter, in the red zone
	movabs $0x5ed05ed05ed05ed0, %rax
	.irp i, 24,32,40,48,56,64,72,80,88,96,104,112,120,128
	mov %rax, -\i(%rsp)
	.endr
	mov IN_GPR+0(%rdi), %rax
	mov IN_GPR+8(%rdi), %rbx
	mov IN_GPR+16(%rdi), %rcx
	mov IN_GPR+24(%rdi), %rdx
	mov IN_GPR+32(%rdi), %rsi
	mov IN_GPR+48(%rdi), %rbp
	mov IN_GPR+64(%rdi), %r8
	mov IN_GPR+72(%rdi), %r9
	mov IN_GPR+80(%rdi), %r10
	mov IN_GPR+88(%rdi), %r11
	mov IN_GPR+96(%rdi), %r12
	mov IN_GPR+104(%rdi), %r13
	mov IN_GPR+112(%rdi), %r14
	mov IN_GPR+120(%rdi), %r15
	mov IN_GPR+40(%rdi), %rdi
	cmpq $0, -16(%rsp)
	je 2f
	stc
1:	nop
	jnc 3f                          # the carry flag must survive
	decq -16(%rsp)                  # leaves the carry flag alone
	jnz 1b
	jmp 4f
2:	syscall
	jmp 4f
3:	ud2
4:	mov %rax, -8(%rsp)
	mov (%rsp), %rax
	mov %rbx, OUT_GPR+8(%rax)
	mov %rcx, OUT_GPR+16(%rax)
	mov %rdx, OUT_GPR+24(%rax)
	mov %rsi, OUT_GPR+32(%rax)
	mov %rdi, OUT_GPR+40(%rax)
	mov %rbp, OUT_GPR+48(%rax)
	mov %r8, OUT_GPR+64(%rax)
	mov %r9, OUT_GPR+72(%rax)
	mov %r10, OUT_GPR+80(%rax)
	mov %r11, OUT_GPR+88(%rax)
	mov %r12, OUT_GPR+96(%rax)
	mov %r13, OUT_GPR+104(%rax)
	mov %r14, OUT_GPR+112(%rax)
	mov %r15, OUT_GPR+120(%rax)
	mov -8(%rsp), %rbx
	mov %rbx, OUT_GPR+0(%rax)
	xor %rcx, %rcx
	movabs $0x5ed05ed05ed05ed0, %rdx
	.irp i, 24,32,40,48,56,64,72,80,88,96,104,112,120,128
	mov -\i(%rsp), %rbx
	xor %rdx, %rbx
	or %rbx, %rcx
	.endr
	mov %rcx, RED(%rax)             # 0 if the red zone is whole
	.irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
	vmovups %ymm\i, OUT_YMM+32*\i(%rax)
	.endr
	.irp i, 7,6,5,4,3,2,1,0
	fstpl OUT_X87+8*\i(%rax)
	.endr
	vzeroupper
	mov OUT_GPR+0(%rax), %rax
	pop %rdi
	pop %r15
	pop %r14
	pop %r13
	pop %r12
	pop %rbp
	pop %rbx
	ret
	.section .note.GNU-stack,"",@progbits
