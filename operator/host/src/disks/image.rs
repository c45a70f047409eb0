//! What a file says of itself, read without QEMU.
//!
//! A guest writes what it likes onto its raw disk, the header of another format too. Programs that
//! open such a file, be it only to describe it, follow what the header names: files of this host,
//! read or written as root (CVE-2024-4467). So nothing of QEMU's opens a file before this has.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// What lies in a file, as far as its first bytes tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// QEMU's qcow2.
    Qcow2(Header),
    /// A format that is not taken, by its name.
    Other(&'static str),
    /// Nothing that is known: the bytes of a disk.
    Bytes,
}

/// What the header of a qcow2 file says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    /// Bytes that a guest sees.
    pub(super) virtual_size: u64,
    /// What is missing is read from another file.
    pub(super) backing_file: bool,
    /// The data lie in another file.
    pub(super) data_file: bool,
}

const QCOW: &[u8] = b"QFI\xfb";
/// Bytes of a header that are looked at; its third version has more than the second.
const HEADER_BYTES: usize = 80;
/// Bytes of the second version's header.
const SECOND_BYTES: usize = 72;
/// Bit of the incompatible features that says that the data lie in another file.
const EXTERNAL_DATA: u64 = 1 << 2;

/// First bytes of what is not taken for a disk's bytes, where they stand, and its name.
const OTHERS: &[(usize, &[u8], &str)] = &[
    (0, b"KDMV", "VMDK"),
    (0, b"COWD", "VMDK"),
    (0, b"# Disk DescriptorFile", "VMDK"),
    (0, b"vhdxfile", "VHDX"),
    (0, b"conectix", "VHD"),
    (64, b"\x7f\x10\xda\xbe", "VDI"),
    (0, b"QED\0", "QED"),
    (0, b"WithoutFreeSpace", "Parallels"),
    (0, b"WithouFreSpacExt", "Parallels"),
    (0, b"\x1f\x8b\x08", "gzip"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
];

/// Reads what lies in a file.
pub(super) fn read(file: &File) -> io::Result<Content> {
    let mut bytes = [0; HEADER_BYTES];
    let mut length = 0;
    while length < bytes.len() {
        match file.read_at(&mut bytes[length..], length as u64) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(judge(&bytes[..length]))
}

fn judge(bytes: &[u8]) -> Content {
    if bytes.starts_with(QCOW) {
        return header(bytes).map_or(Content::Other("spoilt or old qcow"), Content::Qcow2);
    }
    let is = |(at, magic): (usize, &[u8])| bytes.get(at..).is_some_and(|b| b.starts_with(magic));
    let other = OTHERS.iter().find(|(at, magic, _)| is((*at, magic)));
    other.map_or(Content::Bytes, |(_, _, name)| Content::Other(name))
}

/// `None` if it is no header of the second or third version.
fn header(bytes: &[u8]) -> Option<Header> {
    let word = |at: usize| Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let version = u32::from_be_bytes(bytes.get(4..8)?.try_into().ok()?);
    let features = match version {
        2 if bytes.len() >= SECOND_BYTES => 0,
        3 => word(72)?,
        _ => return None,
    };
    Some(Header {
        virtual_size: word(24)?,
        backing_file: word(8)? != 0,
        data_file: features & EXTERNAL_DATA != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qcow(version: u32, backing: u64, features: u64) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[..4].copy_from_slice(QCOW);
        bytes[4..8].copy_from_slice(&version.to_be_bytes());
        bytes[8..16].copy_from_slice(&backing.to_be_bytes());
        bytes[24..32].copy_from_slice(&(5u64 << 20).to_be_bytes());
        bytes[72..80].copy_from_slice(&features.to_be_bytes());
        bytes
    }

    #[test]
    fn a_header_tells_its_size_and_the_files_that_it_names() {
        let size = Header { virtual_size: 5 << 20, ..Header::default() };
        assert_eq!(judge(&qcow(3, 0, 0)), Content::Qcow2(size));
        assert_eq!(judge(&qcow(2, 0, u64::MAX)[..72]), Content::Qcow2(size), "no features yet");
        let backing = Header { backing_file: true, ..size };
        assert_eq!(judge(&qcow(2, 1 << 63, 0)), Content::Qcow2(backing));
        assert_eq!(judge(&qcow(3, 0x70, 0)), Content::Qcow2(backing));
        let data = Header { data_file: true, ..size };
        assert_eq!(judge(&qcow(3, 0, 0b101)), Content::Qcow2(data));
    }

    #[test]
    fn what_begins_like_another_format_is_no_disks_bytes() {
        for bytes in [&qcow(3, 0, 0)[..79], &qcow(2, 0, 0)[..71], &qcow(1, 0, 0), b"QFI\xfb"] {
            assert!(matches!(judge(bytes), Content::Other(_)), "{bytes:?}");
        }
        assert_eq!(judge(b"# Disk DescriptorFile\nversion=1"), Content::Other("VMDK"));
        let mut vdi = [0; HEADER_BYTES];
        vdi[64..68].copy_from_slice(b"\x7f\x10\xda\xbe");
        assert_eq!(judge(&vdi), Content::Other("VDI"));
        for bytes in [&b""[..], b"QFI", &[0; HEADER_BYTES], b"\xeb\x63\x90GRUB"] {
            assert_eq!(judge(bytes), Content::Bytes, "{bytes:?}");
        }
    }
}
