//! A guest that proves things: 512 bytes that count, write what they count, and obey ACPI.
//!
//! Read from the storage side its counters show when the guest wrote, when it stopped, whether it
//! was started anew (the tick counter begins at 1, the boot counter rises) or merely moved (both
//! go on). It boots at once even under emulation.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Size of a sector and of the boot program, bytes.
pub(super) const SECTOR: usize = 512;

/// Size of the disk that [`write_guest_disk`] makes, bytes.
pub const GUEST_DISK_BYTES: u64 = 1024 * 1024;

/// The program, for a BIOS that loads it at 0x7c00 with the boot drive in DL.
///
/// Sector 1 is its only data: a little-endian u64 of ticks since this boot at offset 0, a
/// little-endian u64 of boots at offset 8. Sector 1 is kept in memory at 0x7e00. Power management
/// is QEMU's, at the port 0x600 where SeaBIOS puts it for both the `pc` and the `q35` machine.
#[rustfmt::skip]
const PROGRAM: [u8; 130] = [
    0xfa,                               // 00     cli
    0x31, 0xc0,                         // 01     xor  ax, ax
    0x8e, 0xd8,                         // 03     mov  ds, ax
    0x8e, 0xc0,                         // 05     mov  es, ax
    0x8e, 0xd0,                         // 07     mov  ss, ax
    0xbc, 0x00, 0x7c,                   // 09     mov  sp, 0x7c00
    0xfb,                               // 0c     sti
    0x88, 0x16, 0x71, 0x7c,             // 0d     mov  [drive], dl
    0xba, 0x02, 0x06,                   // 11     mov  dx, 0x602      ; PM1 enable register
    0xb8, 0x00, 0x01,                   // 14     mov  ax, 0x100      ; the power button
    0xef,                               // 17     out  dx, ax
    0xb4, 0x42,                         // 18     mov  ah, 0x42       ; read sector 1
    0xe8, 0x48, 0x00,                   // 1a     call disk
    0x66, 0x31, 0xc0,                   // 1d     xor  eax, eax
    0x66, 0xa3, 0x00, 0x7e,             // 20     mov  [ticks], eax
    0x66, 0xa3, 0x04, 0x7e,             // 24     mov  [ticks+4], eax
    0x66, 0x83, 0x06, 0x08, 0x7e, 0x01, // 28     add  dword [boots], 1
    0x66, 0x83, 0x16, 0x0c, 0x7e, 0x00, // 2e     adc  dword [boots+4], 0
    0x66, 0x83, 0x06, 0x00, 0x7e, 0x01, // 34 tick: add dword [ticks], 1
    0x66, 0x83, 0x16, 0x04, 0x7e, 0x00, // 3a     adc  dword [ticks+4], 0
    0xb4, 0x43,                         // 40     mov  ah, 0x43       ; write sector 1
    0xe8, 0x20, 0x00,                   // 42     call disk
    0x8b, 0x1e, 0x6c, 0x04,             // 45     mov  bx, [0x46c]    ; the BIOS's tick counter
    0xf4,                               // 49 idle: hlt
    0xba, 0x00, 0x06,                   // 4a     mov  dx, 0x600      ; PM1 status register
    0xed,                               // 4d     in   ax, dx
    0xf6, 0xc4, 0x01,                   // 4e     test ah, 1          ; was the button pressed?
    0x75, 0x08,                         // 51     jnz  off
    0x3b, 0x1e, 0x6c, 0x04,             // 53     cmp  bx, [0x46c]
    0x74, 0xf0,                         // 57     je   idle
    0xeb, 0xd9,                         // 59     jmp  tick
    0xba, 0x04, 0x06,                   // 5b off: mov dx, 0x604      ; PM1 control register
    0xb8, 0x00, 0x20,                   // 5e     mov  ax, 0x2000     ; sleep type S5, enable
    0xef,                               // 61     out  dx, ax
    0xf4,                               // 62 end: hlt
    0xeb, 0xfd,                         // 63     jmp  end
    0x30, 0xc0,                         // 65 disk: xor al, al
    0x8a, 0x16, 0x71, 0x7c,             // 67     mov  dl, [drive]
    0xbe, 0x72, 0x7c,                   // 6b     mov  si, packet
    0xcd, 0x13,                         // 6e     int  0x13
    0xc3,                               // 70     ret
    0x00,                               // 71 drive: db 0
    0x10, 0x00, 0x01, 0x00,             // 72 packet: its size, 0, one sector
    0x00, 0x7e, 0x00, 0x00,             // 76     buffer 0000:7e00
    0x01, 0x00, 0x00, 0x00,             // 7a     LBA 1
    0x00, 0x00, 0x00, 0x00,             // 7e
];

/// A guest that does nothing: where many run at once and are not what is looked at, those that
/// write take the machine for themselves.
#[rustfmt::skip]
const IDLE: [u8; 4] = [
    0xfa,                               // 00     cli
    0xf4,                               // 01 idle: hlt
    0xeb, 0xfd,                         // 02     jmp  idle
];

/// A guest that answers each byte of its serial line with that byte and a letter, `A` for the first
/// one since it booted, and so on: a letter that goes on is memory that went along.
#[rustfmt::skip]
const ECHO: [u8; 23] = [
    0xfb,                               // 00     sti
    0xb3, 0x41,                         // 01     mov  bl, 'A'
    0xf4,                               // 03 idle: hlt               ; until the BIOS's next tick
    0xba, 0xfd, 0x03,                   // 04 next: mov dx, 0x3fd     ; line status
    0xec,                               // 07     in   al, dx
    0xa8, 0x01,                         // 08     test al, 1          ; has a byte come?
    0x74, 0xf7,                         // 0a     jz   idle
    0xb2, 0xf8,                         // 0c     mov  dl, 0xf8       ; data
    0xec,                               // 0e     in   al, dx
    0xee,                               // 0f     out  dx, al
    0x88, 0xd8,                         // 10     mov  al, bl
    0xee,                               // 12     out  dx, al
    0xfe, 0xc3,                         // 13     inc  bl
    0xeb, 0xed,                         // 15     jmp  next
];

/// Where [`BALLAST`] lies in its boot sector.
const BALLAST_AT: usize = 0x100;
/// Where it has its number of pages, a little-endian u32.
const BALLAST_PAGES: usize = 0x24;
/// Runs before [`PROGRAM`]: makes pages from 1 MiB on differ from zero, so that a move has something
/// to copy.
#[rustfmt::skip]
const BALLAST: [u8; 83] = [
    0xfa,                                           // 00     cli
    0x31, 0xc0,                                     // 01     xor  ax, ax
    0x8e, 0xd8,                                     // 03     mov  ds, ax
    0x0f, 0x01, 0x16, 0x3d, 0x7d,                   // 05     lgdt [gdtr]
    0x0f, 0x20, 0xc0,                               // 0a     mov  eax, cr0
    0x0c, 0x01,                                     // 0d     or   al, 1          ; protected mode
    0x0f, 0x22, 0xc0,                               // 0f     mov  cr0, eax
    0xbb, 0x08, 0x00,                               // 12     mov  bx, 8
    0x8e, 0xc3,                                     // 15     mov  es, bx         ; a segment of 4 GiB
    0x24, 0xfe,                                     // 17     and  al, 0xfe       ; back: it keeps its size
    0x0f, 0x22, 0xc0,                               // 19     mov  cr0, eax
    0x66, 0xbf, 0x00, 0x00, 0x10, 0x00,             // 1c     mov  edi, 0x100000
    0x66, 0xb9, 0x00, 0x00, 0x00, 0x00,             // 22     mov  ecx, pages
    0x26, 0x67, 0x66, 0x89, 0x3f,                   // 28 page: mov es:[edi], edi
    0x66, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00,       // 2d     add  edi, 0x1000
    0x66, 0x49,                                     // 34     dec  ecx
    0x75, 0xf0,                                     // 36     jnz  page
    0x31, 0xc0,                                     // 38     xor  ax, ax
    0xe9, 0xc6, 0xfe,                               // 3a     jmp  PROGRAM + 3    ; behind cli and xor
    0x0f, 0x00, 0x43, 0x7d, 0x00, 0x00,             // 3d gdtr: limit and base
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // 43 gdt
    0xff, 0xff, 0x00, 0x00, 0x00, 0x92, 0xcf, 0x00, // 4b
];

/// Where [`BALLOON`] lies in its boot sector.
const BALLOON_AT: usize = 0x100;
/// Where [`PROGRAM`] notes the BIOS's tick counter, after each write.
const NOTE_AT: usize = 0x45;
/// Called by [`PROGRAM`] in place of its note of the BIOS's tick: says to the memory balloon of a q35
/// machine that it has given back what it was asked for. QEMU believes that of any driver, and this
/// guest uses no memory.
#[rustfmt::skip]
const BALLOON: [u8; 103] = [
    0xb8, 0x02, 0xb1,                               // 00     mov  ax, 0xb102     ; find a PCI device
    0xb9, 0x45, 0x10,                               // 03     mov  cx, 0x1045     ; a balloon
    0xba, 0xf4, 0x1a,                               // 06     mov  dx, 0x1af4     ; virtio's
    0x31, 0xf6,                                     // 09     xor  si, si
    0xcd, 0x1a,                                     // 0b     int  0x1a           ; its place in BX
    0x72, 0x3d,                                     // 0d     jc   done
    0xb8, 0x0a, 0xb1,                               // 0f     mov  ax, 0xb10a     ; read of it
    0xbf, 0x20, 0x00,                               // 12     mov  di, 0x20       ; BAR 4, below 4 GiB
    0xcd, 0x1a,                                     // 15     int  0x1a
    0x80, 0xe1, 0xf0,                               // 17     and  cl, 0xf0
    0x66, 0x89, 0xcf,                               // 1a     mov  edi, ecx
    0xfa,                                           // 1d     cli
    0x0f, 0x01, 0x16, 0x51, 0x7d,                   // 1e     lgdt [gdtr]
    0x0f, 0x20, 0xc0,                               // 23     mov  eax, cr0
    0x0c, 0x01,                                     // 26     or   al, 1          ; protected mode
    0x0f, 0x22, 0xc0,                               // 28     mov  cr0, eax
    0xbb, 0x08, 0x00,                               // 2b     mov  bx, 8
    0x8e, 0xc3,                                     // 2e     mov  es, bx         ; a segment of 4 GiB
    0x24, 0xfe,                                     // 30     and  al, 0xfe       ; back: it keeps its size
    0x0f, 0x22, 0xc0,                               // 32     mov  cr0, eax
    0x26, 0x67, 0x66, 0x8b, 0x87, 0x00, 0x20, 0x00, 0x00, // 35 mov eax, es:[edi+0x2000] ; pages asked for
    0x26, 0x67, 0x66, 0x89, 0x87, 0x04, 0x20, 0x00, 0x00, // 3e mov es:[edi+0x2004], eax ; pages given
    0x31, 0xc0,                                     // 47     xor  ax, ax
    0x8e, 0xc0,                                     // 49     mov  es, ax
    0xfb,                                           // 4b     sti
    0x8b, 0x1e, 0x6c, 0x04,                         // 4c done: mov bx, [0x46c]
    0xc3,                                           // 50     ret
    0x0f, 0x00, 0x57, 0x7d, 0x00, 0x00,             // 51 gdtr: limit and base
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // 57 gdt
    0xff, 0xff, 0x00, 0x00, 0x00, 0x92, 0xcf, 0x00, // 5f
];

/// Where [`SLOWLY`] lies in its boot sector: behind [`BALLAST`].
const SLOWLY_AT: usize = 0x160;
/// In place of [`PROGRAM`]'s look whether the BIOS has ticked: has it four times?
#[rustfmt::skip]
const SLOWLY: [u8; 15] = [
    0xa1, 0x6c, 0x04,                   // 00     mov  ax, [0x46c]
    0x29, 0xd8,                         // 03     sub  ax, bx
    0x3c, 0x04,                         // 05     cmp  al, 4
    0x72, 0x03,                         // 07     jb   wait
    0xe9, 0xc8, 0xfe,                   // 09     jmp  PROGRAM's tick
    0xe9, 0xda, 0xfe,                   // 0c wait: jmp PROGRAM's idle
];
/// Where [`PROGRAM`] looks whether the BIOS has ticked.
const LOOK_AT: usize = 0x53;

/// The boot sector of a guest that counts and writes at every fourth tick: some five times a second.
/// Where guests are emulated twice over, those that write at each take their host for themselves.
pub fn slow_boot_sector() -> [u8; SECTOR] {
    let mut sector = boot_sector();
    detour(&mut sector, LOOK_AT, JMP, SLOWLY_AT, &SLOWLY);
    sector
}

/// Opcodes of a near jump and a near call, with two bytes of distance.
const JMP: u8 = 0xe9;
const CALL: u8 = 0xe8;

/// Puts code at a place further on in a boot sector, and a jump or call to it in the place of three
/// bytes.
fn detour(sector: &mut [u8; SECTOR], from: usize, opcode: u8, to: usize, code: &[u8]) {
    sector[to..][..code.len()].copy_from_slice(code);
    sector[from] = opcode;
    sector[from + 1..][..2].copy_from_slice(&((to - from - 3) as u16).to_le_bytes());
}

/// The boot sector with its signature.
fn boot_sector() -> [u8; SECTOR] {
    bootable(&PROGRAM)
}

fn bootable(program: &[u8]) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    sector[..program.len()].copy_from_slice(program);
    sector[510] = 0x55;
    sector[511] = 0xaa;
    sector
}

/// Writes a disk whose guest boots and halts. It obeys no ACPI.
pub fn write_idle_disk(path: &Path) -> io::Result<()> {
    write_disk(path, &bootable(&IDLE))
}

/// Writes a disk whose guest answers on its serial line. It obeys no ACPI.
pub fn write_echo_disk(path: &Path) -> io::Result<()> {
    write_disk(path, &bootable(&ECHO))
}

/// Writes a new raw disk of [`GUEST_DISK_BYTES`] that boots the proving guest.
///
/// Fails where the file exists already: a disk in use is never replaced.
pub fn write_guest_disk(path: &Path) -> io::Result<()> {
    write_disk(path, &boot_sector())
}

/// Writes a disk whose proving guest fills some of its memory, MiB, before it counts.
///
/// # Errors
/// As [`write_guest_disk`].
pub fn write_heavy_disk(path: &Path, mebibytes: u8) -> io::Result<()> {
    write_disk(path, &heavy(boot_sector(), mebibytes))
}

/// The boot sector of a guest that fills some of its memory, MiB, and then counts as that of
/// [`slow_boot_sector`] does.
#[must_use]
pub fn slow_heavy_boot_sector(mebibytes: u8) -> [u8; SECTOR] {
    heavy(slow_boot_sector(), mebibytes)
}

/// The same boot sector, of a guest that fills some of its memory first.
fn heavy(mut sector: [u8; SECTOR], mebibytes: u8) -> [u8; SECTOR] {
    // In place of `cli` and `xor ax, ax`, which the ballast does.
    detour(&mut sector, 0, JMP, BALLAST_AT, &BALLAST);
    let pages = u32::from(mebibytes) * 256;
    sector[BALLAST_AT + BALLAST_PAGES..][..4].copy_from_slice(&pages.to_le_bytes());
    sector
}

/// Writes a disk whose proving guest gives memory back when it is asked to.
///
/// # Errors
/// As [`write_guest_disk`].
pub fn write_balloon_disk(path: &Path) -> io::Result<()> {
    let mut sector = boot_sector();
    detour(&mut sector, NOTE_AT, CALL, BALLOON_AT, &BALLOON);
    // The note has four bytes.
    sector[NOTE_AT + 3] = 0x90;
    write_disk(path, &sector)
}

fn write_disk(path: &Path, boot_sector: &[u8]) -> io::Result<()> {
    let file = File::options().write(true).create_new(true).open(path)?;
    file.write_all_at(boot_sector, 0)?;
    file.set_len(GUEST_DISK_BYTES)?;
    file.sync_all()
}

/// Ticks the guest has written since its last boot; 0 before its first write.
pub fn guest_counter(path: &Path) -> io::Result<u64> {
    read_u64(path, 0)
}

/// How often the guest has booted from this disk.
pub fn guest_boots(path: &Path) -> io::Result<u64> {
    read_u64(path, 8)
}

fn read_u64(path: &Path, offset: u64) -> io::Result<u64> {
    let mut bytes = [0; 8];
    File::open(path)?.read_exact_at(&mut bytes, SECTOR as u64 + offset)?;
    Ok(u64::from_le_bytes(bytes))
}

/// A minimal domain of the proving guest for `virsh create`: emulated, one disk, no network.
pub fn guest_domain_xml(name: &str, uuid: &str, disk: &Path) -> String {
    format!(
        "<domain type='qemu'>\n  <name>{name}</name>\n  <uuid>{uuid}</uuid>\n  \
         <memory unit='MiB'>16</memory>\n  <vcpu>1</vcpu>\n  \
         <os><type arch='x86_64' machine='pc'>hvm</type></os>\n  <features><acpi/></features>\n  \
         <devices>\n    <disk type='file' device='disk'>\n      \
         <driver name='qemu' type='raw' cache='none'/>\n      <source file='{}'/>\n      \
         <target dev='vda' bus='virtio'/>\n    </disk>\n    <memballoon model='none'/>\n  \
         </devices>\n</domain>\n",
        disk.display()
    )
}
