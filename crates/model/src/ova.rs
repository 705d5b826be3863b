//! OVF packages, in OVA archives: what is in one, and where. Reading only, and lenient towards what is not known.
//!
//! An OVA is a tar archive, so that a disk's image in it is a range of bytes, which needs no unpacking. Its OVF file is XML,
//! of which what is needed here is read: the machine's name, CPUs, memory, disks and network devices.

use std::collections::BTreeMap;

/// The size of a tar archive's blocks.
pub const BLOCK: u64 = 512;

/// A file in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its size in bytes. Its content follows its header.
    pub size: u64,
}

impl Member {
    /// Reads a header; none at the archive's end, or where there is none.
    pub fn parse(block: &[u8]) -> Option<Self> {
        let text = |from: usize, to: usize| {
            let bytes = block.get(from..to)?;
            let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
            std::str::from_utf8(&bytes[..end]).ok()
        };
        if text(257, 262)? != "ustar" {
            return None;
        }
        // Files alone: of a longer name, say, what follows is no file.
        let kind = *block.get(156)?;
        let name = if matches!(kind, b'0' | 0) { text(0, 100)?.to_owned() } else { String::new() };
        let size = match *block.get(124)? {
            // Larger than fits in octal digits.
            first if first & 0x80 != 0 => block
                .get(125..136)?
                .iter()
                .try_fold(0u64, |n, b| n.checked_mul(256)?.checked_add(u64::from(*b)))?,
            _ => u64::from_str_radix(text(124, 136)?.trim(), 8).ok()?,
        };
        Some(Self { name, size })
    }

    /// Where the next header is, from where its content begins.
    pub fn padded(&self) -> Option<u64> {
        self.size.checked_next_multiple_of(BLOCK)
    }
}

/// What an OVF file says of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// Its name.
    pub name: Option<String>,
    /// How many CPUs it has.
    pub cpus: Option<u32>,
    /// How much memory, in MiB.
    pub memory: Option<u64>,
    /// Its disks: on which bus, and the file that holds each.
    pub disks: Vec<(&'static str, String)>,
    /// How many network devices it has.
    pub nets: usize,
}

/// A tag with its attributes, without prefixes of names, and the text that follows it.
struct Tag<'a> {
    name: &'a str,
    attributes: BTreeMap<&'a str, String>,
    text: String,
}

/// What is said of a piece of hardware.
type Item<'a> = BTreeMap<&'a str, String>;

fn unescape(text: &str) -> String {
    let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&apos;", "'");
    text.replace("&amp;", "&")
}

fn local(name: &str) -> &str {
    name.rsplit(':').next().unwrap_or(name)
}

/// The opening tags of a text, in order; closing ones have a name that begins with `/`.
fn tags(text: &str) -> Vec<Tag<'_>> {
    let mut out = vec![];
    for part in text.split('<').skip(1) {
        let Some((tag, after)) = part.split_once('>') else { continue };
        if tag.starts_with(['?', '!']) {
            continue;
        }
        let closing = tag.starts_with('/');
        let tag = tag.trim_end_matches('/');
        let (name, mut rest) = tag.split_once(char::is_whitespace).unwrap_or((tag, ""));
        let mut attributes = BTreeMap::new();
        while let Some((key, value)) = rest.split_once('=') {
            let value = value.trim_start();
            let Some(quote) = value.chars().next().filter(|c| matches!(c, '"' | '\'')) else { break };
            let Some((value, more)) = value[1..].split_once(quote) else { break };
            attributes.insert(local(key.trim()), unescape(value));
            rest = more;
        }
        let name = match local(name.trim_start_matches('/')) {
            "Item" | "StorageItem" | "EthernetPortItem" if closing => "/Item",
            _ if closing => "/",
            name => name,
        };
        out.push(Tag { name, attributes, text: unescape(after.trim()) });
    }
    out
}

impl Machine {
    /// Reads an OVF file.
    pub fn parse(text: &str) -> Self {
        let mut machine = Self::default();
        let (mut files, mut disks) = (BTreeMap::new(), BTreeMap::new());
        let mut controllers: BTreeMap<String, &'static str> = BTreeMap::new();
        let (mut item, mut items): (Option<Item<'_>>, Vec<Item<'_>>) = (None, vec![]);
        for tag in tags(text) {
            let attribute = |name: &str| tag.attributes.get(name).cloned();
            match tag.name {
                "File" => files.extend(attribute("id").zip(attribute("href"))),
                "Disk" => disks.extend(attribute("diskId").zip(attribute("fileRef"))),
                "VirtualSystem" => machine.name = attribute("id"),
                "Item" | "StorageItem" | "EthernetPortItem" => item = Some(BTreeMap::new()),
                "/Item" => items.extend(item.take()),
                name => {
                    if let Some(item) = &mut item {
                        item.insert(name, tag.text);
                    }
                }
            }
        }
        items.extend(item);
        for item in &items {
            let get = |name: &str| item.get(name).map(String::as_str);
            let id = get("InstanceID").unwrap_or_default().to_owned();
            match get("ResourceType") {
                Some("3") => machine.cpus = get("VirtualQuantity").and_then(|n| n.parse().ok()),
                Some("4") => machine.memory = get("VirtualQuantity").and_then(|n| n.parse().ok()),
                Some("5") => drop(controllers.insert(id, "ide")),
                Some("6") => drop(controllers.insert(id, "scsi")),
                Some("20") => drop(controllers.insert(id, "sata")),
                Some("10") => machine.nets += 1,
                _ => {}
            }
        }
        for item in items.iter().filter(|i| i.get("ResourceType").is_some_and(|t| t == "17")) {
            let disk = item.get("HostResource").and_then(|r| r.rsplit('/').next());
            let file = disk.and_then(|id| files.get(disks.get(id)?));
            let bus = item.get("Parent").and_then(|p| controllers.get(p)).copied().unwrap_or("scsi");
            machine.disks.extend(file.map(|file| (bus, file.clone())));
        }
        machine
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str, size: &[u8], kind: u8) -> Vec<u8> {
        let mut block = vec![0; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[124..124 + size.len()].copy_from_slice(size);
        block[156] = kind;
        block[257..262].copy_from_slice(b"ustar");
        block
    }

    #[test]
    fn members_are_found_by_their_headers() {
        let member = |name: &str, size| Some(Member { name: name.into(), size });
        assert_eq!(Member::parse(&header("a.ovf", b"00000001000\0", b'0')), member("a.ovf", 512));
        assert_eq!(Member::parse(&header("long", b"00000000012 ", b'L')), member("", 10));
        let large = [0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0];
        assert_eq!(Member::parse(&header("b", &large, 0)), member("b", 2 << 32));
        assert_eq!(Member::parse(&[0; 512]), None);
        assert_eq!(Member::parse(b"short"), None);
        assert_eq!(Member { name: String::new(), size: 513 }.padded(), Some(1024));
    }

    #[test]
    fn a_machine_is_read() {
        let ovf = r#"<?xml version="1.0"?><Envelope xmlns:ovf="x">
          <References><ovf:File ovf:href="web &amp; db.vmdk" ovf:id="file1" ovf:size="1"/></References>
          <DiskSection><Disk ovf:capacity="2" ovf:diskId="vmdisk1" ovf:fileRef="file1"/></DiskSection>
          <VirtualSystem ovf:id="web"><VirtualHardwareSection>
          <Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
          <Item><rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>1024</rasd:VirtualQuantity></Item>
          <Item><rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceType>20</rasd:ResourceType></Item>
          <Item><rasd:HostResource>ovf:/disk/vmdisk1</rasd:HostResource><rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
          <Item><rasd:ResourceType>10</rasd:ResourceType></Item>
          </VirtualHardwareSection></VirtualSystem></Envelope>"#;
        let machine = Machine::parse(ovf);
        assert_eq!(
            machine,
            Machine {
                name: Some("web".into()),
                cpus: Some(2),
                memory: Some(1024),
                disks: vec![("sata", "web & db.vmdk".into())],
                nets: 1,
            }
        );
        assert_eq!(Machine::parse("no xml"), Machine::default());
        assert_eq!(Machine::parse("<Item a=><x"), Machine::default());
    }
}
