# A guest in one sector, for tests with many: ticks on the serial port, and writes a counter to its own disk.
#
#   sector 0   this code
#   sector 1   the cell: "STEADTIK", id (8 bytes: the time stamp counter at boot), count (8 bytes), conflicts (4 bytes)
#
# About five times a second it reads the cell. If it holds anything but what this boot wrote last, another writer runs:
# `conflicts` is raised in what it writes next. A boot begins with the count and the conflicts that it finds.
#
# With WRITES it changes memory faster than a slow network sends it: 64 of 3072 pages at each of the timer's ticks, 4.5 MiB a second.

        .code16
        .globl _start
_start:
        cli
        cld
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $0x7c00, %sp
        movb    %dl, drive
        sti

        rdtsc
        movl    %eax, id
        movl    %edx, id + 4

        # Take over what the last boot left.
        movb    $0x42, %ah
        call    disk
        movw    $found, %si
        movw    $mark, %di
        movw    $4, %cx
        repe    cmpsw
        jne     1f
        movl    found + 16, %eax
        movl    %eax, count
        movl    found + 24, %eax
        movl    %eax, conflicts
1:      call    write_cell

tick:
        # Wait for four of the timer's ticks of 55 ms.
        movl    0x46c, %ebx
1:      hlt
        .ifdef  WRITES
        # With a segment that reaches all of it.
        cli
        lgdt    gdtr
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        movw    $8, %cx
        movw    %cx, %es
        andb    $0xfe, %al
        movl    %eax, %cr0
        movl    page, %edi
        movw    $64, %cx
2:      addr32 incl %es:(%edi)
        addl    $4096, %edi
        cmpl    $0xd00000, %edi
        jb      3f
        movl    $0x100000, %edi
3:      loop    2b
        movl    %edi, page
        xorw    %ax, %ax
        movw    %ax, %es
        sti
        .endif
        movl    0x46c, %eax
        subl    %ebx, %eax
        cmpl    $4, %eax
        jb      1b

        # Does the cell still hold what this boot wrote?
        movb    $0x42, %ah
        call    disk
        movw    $found, %si
        movw    $mark, %di
        movw    $12, %cx                # mark, id, count: 24 bytes
        repe    cmpsw
        je      1f
        incl    conflicts
1:      incl    count
        call    write_cell

        movb    $'t', %al
        cmpl    $0, conflicts
        je      1f
        movb    $'!', %al
1:      call    put
        movl    count, %ebx
        movw    $8, %cx
2:      roll    $4, %ebx
        movb    %bl, %al
        andb    $15, %al
        addb    $'0', %al
        cmpb    $'9', %al
        jbe     3f
        addb    $39, %al
3:      call    put
        loop    2b
        movb    $'\n', %al
        call    put
        jmp     tick

# Writes AL to the first serial port.
put:
        pushw   %ax
        movw    $0x3fd, %dx
1:      inb     %dx, %al
        testb   $0x20, %al
        jz      1b
        popw    %ax
        movw    $0x3f8, %dx
        outb    %al, %dx
        ret

write_cell:
        movw    $mark, %si
        movw    $found, %di
        movw    $14, %cx                # mark, id, count, conflicts: 28 bytes
        rep     movsw
        movw    $0x4300, %ax
        # falls through

# AH = 42h reads the cell to `found`, AH = 43h writes it from there. An error is tried again at the next tick.
disk:
        movb    drive, %dl
        movw    $packet, %si
        int     $0x13
        ret

drive:  .byte   0
        .balign 4
        .ifdef  WRITES
page:   .long   0x100000
gdt:    .quad   0, 0x00cf92000000ffff
gdtr:   .word   . - gdt - 1
        .long   gdt
        .balign 4
        .endif
packet: .byte   16, 0
        .word   1, found, 0
        .long   1, 0
mark:   .ascii  "STEADTIK"
id:     .long   0, 0
count:  .long   0, 0
conflicts: .long 0

        .org    510
        .word   0xaa55

        .equ    found, 0x8000
