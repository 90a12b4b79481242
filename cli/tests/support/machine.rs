//! A virtual machine without an operating system, for what takes a running one: a screen, and a serial port that answers.

use super::libvirtd::Libvirtd;

/// A boot sector for a PC: it clears the screen, then sends back what comes on the serial port, each byte with its bit 0x20 turned
/// over, so that letters change their case and an asterisk ends the line.
const BOOT: [u8; 37] = [
    0xb8, 0x13, 0x00, // mov ax, 0x13: a mode of the screen in which nothing blinks
    0xcd, 0x10, // int 0x10
    0xba, 0xfd, 0x03, // wait: mov dx, 0x3fd
    0xec, // in al, dx
    0xa8, 0x01, // test al, 1: has a byte come?
    0x74, 0xf8, // jz wait
    0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xec, // in al, dx
    0x34, 0x20, // xor al, 0x20
    0x88, 0xc4, // mov ah, al
    0xba, 0xfd, 0x03, // mov dx, 0x3fd
    0xec, // room: in al, dx
    0xa8, 0x20, // test al, 0x20: may a byte go?
    0x74, 0xfb, // jz room
    0x88, 0xe0, // mov al, ah
    0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xee, // out dx, al
    0xeb, 0xe0, // jmp wait
];

/// What the machine is asked, and what it answers.
pub(crate) const ASKED: &[u8] = b"canyouhearme*";
pub(crate) const ANSWER: &str = "CANYOUHEARME";

/// Starts the machine `echo`, and removes its disk again: QEMU has it open. Do it before there is any load: beside one, Linux may leave
/// the QEMU that libvirtd asks first without a processor for minutes.
#[track_caller]
pub(crate) fn start(libvirtd: &Libvirtd) {
    let disk = libvirtd.disk("boot");
    let mut sector = BOOT.to_vec();
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    std::fs::write(&disk, sector).expect("a new file");
    let xml = format!(
        "<domain type='qemu'>
          <name>echo</name>
          <memory unit='MiB'>32</memory>
          <os><type arch='x86_64' machine='pc'>hvm</type></os>
          <devices>
            <emulator>/usr/bin/qemu-system-x86_64</emulator>
            <disk type='file' device='disk'>
              <driver name='qemu' type='raw'/><source file='{}'/><target dev='hda' bus='ide'/>
            </disk>
            <controller type='usb' model='none'/>
            <serial type='pty'/>
            <video><model type='vga'/></video>
            <memballoon model='none'/>
          </devices>
        </domain>",
        disk.display()
    );
    let file = libvirtd.disk("echo.xml");
    std::fs::write(&file, xml).expect("a new file");
    libvirtd.virsh(&["create", &file.to_string_lossy()]);
    for file in [file, disk] {
        std::fs::remove_file(file).expect("it is there");
    }
}
