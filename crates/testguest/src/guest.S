// SPDX-License-Identifier: Apache-2.0
# Prints S and fills a pattern. Then loops forever: counts, writes the count into one page of a ring, and every
# 256 rounds checks the pattern and prints K if it is intact, else X. Entry state as defined by PVH: 32-bit
# protected mode, flat segments, no paging. Addresses are the same as in lib.rs.
    .set COUNTER, 0x300000
    .set PATTERN, 0x400000
    .set PATTERN_WORDS, 4096
    .set RING, 0x500000
    .set SERIAL, 0x3f8

    .section .note.pvh, "a", @note
    .align 4
    .long 4                     # length of the name
    .long 4                     # length of the value
    .long 18                    # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long start

    .text
    .code32
    .globl start
start:
    movb $'S', %al
    movw $SERIAL, %dx
    outb %al, %dx
    xorl %ecx, %ecx
fill:
    movl %ecx, %eax
    xorl $0x5a5aa5a5, %eax
    movl %eax, PATTERN(,%ecx,4)
    incl %ecx
    cmpl $PATTERN_WORDS, %ecx
    jb fill
    xorl %ebx, %ebx
round:
    incl %ebx
    movl %ebx, COUNTER
    movl %ebx, %eax
    andl $7, %eax
    shll $12, %eax
    movl %ebx, RING(%eax)
    testl $255, %ebx
    jnz round
    xorl %ecx, %ecx
check:
    movl %ecx, %eax
    xorl $0x5a5aa5a5, %eax
    cmpl %eax, PATTERN(,%ecx,4)
    movb $'X', %al
    jne report
    incl %ecx
    cmpl $PATTERN_WORDS, %ecx
    jb check
    movb $'K', %al
report:
    movw $SERIAL, %dx
    outb %al, %dx
    jmp round
