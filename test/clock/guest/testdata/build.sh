#!/bin/sh
# Builds guest.bin, which is committed: a test needs no compiler of C.
set -eu
cd "$(dirname "$0")"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
gcc -m64 -mno-red-zone -mgeneral-regs-only -O2 -Wall -Wextra -Werror -ffreestanding -fno-pic -fno-pie -fno-stack-protector \
	-fno-asynchronous-unwind-tables -c guest.c -o "$tmp/guest.o"
as --64 start.S -o "$tmp/start.o"
ld -m elf_x86_64 -z max-page-size=4096 -z noexecstack -T guest.ld --oformat binary -o guest.bin "$tmp/start.o" "$tmp/guest.o"
chmod 644 guest.bin
