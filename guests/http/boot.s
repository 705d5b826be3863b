# Boots a Linux kernel that lies on the raw disk: no partition, no file system, no menu, no wait.
#
# A boot loader of our own since an image must be made without root and without boot loader packages, and the guest
# must answer within seconds under emulation. It follows the kernel's documented 16-bit boot protocol (2.10 and later).
#
#   sector 0        this code's first part and the table below, filled in by the image builder
#   sectors 1 to 3  its second part
#   from `kernel`   the kernel file as it is (bzImage), then the initial RAM disk
#
#   memory: 0x7c00 this code, 0x10000 the kernel's real-mode part with its stack and heap up to 0x1e000,
#           0x1e000 the command line, 0x20000 a buffer of 32 KiB, 0x100000 the kernel, `initrd_at` the RAM disk

        .code16
        .globl _start
_start:
        jmp     begin
        .org    4
magic:          .ascii "STEADGST"       # 4: tells the guest which disk is its system
kernel_lba:     .long 0                 # 12: where the protected-mode part begins
kernel_sectors: .long 0                 # 16
setup_lba:      .long 0                 # 20: where the kernel file begins
setup_sectors:  .long 0                 # 24: its real-mode part, boot sector included
initrd_lba:     .long 0                 # 28
initrd_bytes:   .long 0                 # 32
initrd_at:      .long 0                 # 36: the address to load it at

begin:
        cli
        cld
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $0x7c00, %sp
        sti
        movb    %dl, drive

        # The second part of this code.
        movw    $3, packet_count
        movw    $0x7e00, packet_offset
        movw    $0, packet_segment
        movl    $1, packet_lba
        call    read
        jmp     second

# Reads what `packet` says; does not return on an error.
read:
        movw    $packet, %si
        movb    drive, %dl
        movb    $0x42, %ah
        int     $0x13
        jc      failed
        ret

failed:
        movw    $failed_text, %si
        call    print
1:      hlt
        jmp     1b

# Prints the text at SI.
print:
        lodsb
        testb   %al, %al
        jz      1f
        movb    $0x0e, %ah
        movw    $7, %bx
        int     $0x10
        jmp     print
1:      ret

drive:  .byte   0
        .balign 4
packet:
        .byte   16, 0
packet_count:   .word 0
packet_offset:  .word 0
packet_segment: .word 0
packet_lba:     .long 0, 0

failed_text:    .asciz "\r\nthe disk cannot be read\r\n"

        .org    510
        .word   0xaa55

second:
        movw    $hello, %si
        call    print

        # The real-mode part, in pieces of at most 32 sectors.
        movl    setup_lba, %eax
        movl    %eax, packet_lba
        movl    setup_sectors, %ecx
        movw    $0x1000, packet_segment
        movw    $0, packet_offset
1:      movl    $32, %eax
        cmpl    %ecx, %eax
        jbe     2f
        movl    %ecx, %eax
2:      movw    %ax, packet_count
        pushl   %eax
        pushl   %ecx
        call    read
        popl    %ecx
        popl    %eax
        addl    %eax, packet_lba
        subl    %eax, %ecx
        shll    $5, %eax                # sectors to paragraphs
        addw    %ax, packet_segment
        testl   %ecx, %ecx
        jnz     1b

        # The kernel and the RAM disk, to high memory.
        movl    kernel_lba, %eax
        movl    kernel_sectors, %ecx
        movl    $0x100000, %edi
        call    load_high
        movl    initrd_lba, %eax
        movl    initrd_bytes, %ecx
        addl    $511, %ecx
        shrl    $9, %ecx
        movl    initrd_at, %edi
        call    load_high

        # The command line.
        movw    $0x1e00, %ax
        movw    %ax, %es
        xorw    %di, %di
        movw    $cmdline, %si
        movw    $(cmdline_end - cmdline), %cx
        rep     movsb

        # What the kernel wants to know.
        movw    $0x1000, %ax
        movw    %ax, %es
        movb    $0xff, %es:0x210        # type_of_loader: none of the known ones
        orb     $0x80, %es:0x211        # loadflags: CAN_USE_HEAP
        movw    $0xde00, %es:0x224      # heap_end_ptr
        movw    $0xffff, %es:0x1fa      # vid_mode: as it is
        movl    $0x1e000, %es:0x228     # cmd_line_ptr
        movl    initrd_at, %eax
        movl    %eax, %es:0x218         # ramdisk_image
        movl    initrd_bytes, %eax
        movl    %eax, %es:0x21c         # ramdisk_size

        cli
        movw    $0x1000, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %fs
        movw    %ax, %gs
        movw    %ax, %ss
        movw    $0xe000, %sp
        ljmp    $0x1020, $0

# Loads ECX sectors from sector EAX to linear address EDI, by way of the buffer.
load_high:
        movl    %eax, packet_lba
        movw    $0x2000, packet_segment
        movw    $0, packet_offset
1:      testl   %ecx, %ecx
        jz      3f
        movl    $64, %eax
        cmpl    %ecx, %eax
        jbe     2f
        movl    %ecx, %eax
2:      movw    %ax, packet_count
        pushl   %ecx
        pushl   %eax
        pushl   %edi
        call    read
        popl    %edi
        popl    %eax
        pushl   %eax
        pushl   %edi

        # INT 15h, AH=87h moves CX words from and to the addresses in this table of descriptors.
        movw    %di, to_low
        movl    %edi, %ebx
        shrl    $16, %ebx
        movb    %bl, to_mid
        movb    %bh, to_high
        movw    %ax, %cx
        shlw    $8, %cx                 # sectors to words
        xorw    %ax, %ax
        movw    %ax, %es
        movw    $table, %si
        movb    $0x87, %ah
        int     $0x15
        jc      failed

        popl    %edi
        popl    %eax
        popl    %ecx
        addl    %eax, packet_lba
        subl    %eax, %ecx
        shll    $9, %eax
        addl    %eax, %edi
        jmp     1b
3:      ret

        .balign 16
table:  .quad   0, 0
        .word   0xffff, 0x0000          # from 0x20000
        .byte   0x02, 0x93, 0, 0
        .word   0xffff
to_low: .word   0
to_mid: .byte   0, 0x93, 0
to_high: .byte  0
        .quad   0, 0

hello:  .asciz  "Stead's test guest\r\n"
# Quiet, and without what takes a second under emulation: probing, calibrating, patching, IPv6. The serial port comes
# last, so that the program's output goes there.
cmdline:
        .ascii  "console=tty0 console=ttyS0,115200 quiet loglevel=3 panic=1 random.trust_cpu=on "
        .ascii  "mitigations=off noreplace-smp lpj=4900000 no_timer_check tsc=nowatchdog nokaslr audit=0 "
        .asciz  "8250.nr_uarts=1 i8042.noaux cryptomgr.notests ipv6.disable=1 rcupdate.rcu_expedited=1"
cmdline_end:
        .org    2048
