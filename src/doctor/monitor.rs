//! QEMU's command line: is the guest's memory shared, and is the device as it must be?

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::Path;

use super::Finding;
use crate::tag::Tag;

/// Where an option has the word that stands before its first comma.
const FIRST: &str = "";
/// The device of virtio-9p.
const VIRTIO_ID: &str = "9";

/// The options that matter, in the order of the command line.
pub struct CommandLine {
    given: bool,
    options: Vec<(String, Properties)>,
}

/// What follows an option: `first,name=value,...`, or the same as JSON, as libvirt writes it.
struct Properties(HashMap<String, String>);

impl Properties {
    fn new(text: &str) -> Properties {
        let mut properties = HashMap::new();
        let inner = text
            .strip_prefix('{')
            .and_then(|text| text.strip_suffix('}'));
        for (index, part) in inner.unwrap_or(text).split(',').enumerate() {
            let (name, value) = match (inner.is_some(), part.split_once(['=', ':'])) {
                (true, Some((name, value))) => (unquoted(name), unquoted(value)),
                (false, Some((name, value))) if part.contains('=') => (name, value),
                _ if index == 0 => (FIRST, part),
                // A flag is on.
                _ => (part, "on"),
            };
            let name = match name {
                "qom-type" | "driver" | "backend" => FIRST,
                name => name,
            };
            properties.insert(name.to_owned(), value.to_owned());
        }
        Properties(properties)
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn first(&self) -> &str {
        self.get(FIRST).unwrap_or_default()
    }
}

fn unquoted(text: &str) -> &str {
    text.trim().trim_matches('"')
}

fn is_on(value: &str) -> bool {
    ["on", "yes", "true", "y"].contains(&value)
}

impl CommandLine {
    /// From its words, the program's name first. There may be none.
    pub fn new(words: &[OsString]) -> CommandLine {
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        let options = words.windows(2).filter_map(|pair| {
            let name = pair[0].strip_prefix('-')?;
            let name = name.strip_prefix('-').unwrap_or(name);
            Some((name.to_owned(), Properties::new(&pair[1])))
        });
        CommandLine {
            given: !words.is_empty(),
            options: options.collect(),
        }
    }

    fn all<'a>(&'a self, names: &'a [&str]) -> impl Iterator<Item = &'a Properties> {
        self.options
            .iter()
            .filter(|(name, _)| names.contains(&name.as_str()))
            .map(|(_, properties)| properties)
    }

    fn by_id(&self, option: &'static str, id: &str) -> Option<&Properties> {
        self.options
            .iter()
            .filter(|(name, _)| name == option)
            .map(|(_, properties)| properties)
            .find(|properties| properties.get("id") == Some(id))
    }

    fn device(&self) -> Option<&Properties> {
        self.all(&["device"])
            .find(|device| device.first().starts_with("vhost-user-test-device"))
    }

    /// Where the device connects to.
    pub fn socket(&self) -> Option<&str> {
        let chardev = self.device()?.get("chardev")?;
        self.by_id("chardev", chardev)?.get("path")
    }

    /// Looks at memory and device.
    pub fn examine(&self, tag: &Tag, socket: Option<&Path>) -> Vec<Finding> {
        if !self.given {
            return vec![Finding::note(
                "QEMU's command line was not looked at: the guest's memory must be shared, and the \
                 device must be right",
                "give it behind --, or --pid PID of a QEMU that runs",
            )];
        }
        let mut findings = self.memory();
        findings.extend(self.examine_device(tag, socket));
        findings
    }

    fn memory(&self) -> Vec<Finding> {
        const MEND: &str = "-object memory-backend-memfd,id=mem,size=SIZE,share=on -numa node,memdev=mem, \
                            with the SIZE of -m";
        let machines = self.all(&["machine", "M"]);
        let machines = machines.filter_map(|machine| machine.get("memory-backend"));
        let nodes = self.all(&["numa"]).filter_map(|node| node.get("memdev"));
        let backends: Vec<&str> = machines.chain(nodes).collect();
        if backends.is_empty() {
            return vec![Finding::bad(
                "the guest's memory is QEMU's own: the daemon cannot reach it",
                format!("give QEMU {MEND}"),
            )];
        }
        let mut findings = Vec::new();
        for id in backends {
            let Some(backend) = self.by_id("object", id) else {
                findings.push(Finding::bad(
                    format!("the memory {id} is named, but there is no -object of this id"),
                    format!("give QEMU {MEND}"),
                ));
                continue;
            };
            // That of a memfd alone is shared without a word.
            let memfd = backend.first() == "memory-backend-memfd";
            findings.push(match backend.get("share").map_or(memfd, is_on) {
                true => Finding::good(format!("the memory {id} is shared")),
                false => Finding::bad(
                    format!("the memory {id} is not shared: the daemon would see a copy of it"),
                    format!("add share=on to -object {},id={id}", backend.first()),
                ),
            });
        }
        findings
    }

    fn examine_device(&self, tag: &Tag, socket: Option<&Path>) -> Vec<Finding> {
        let size = tag.config_space().len().to_string();
        let path = socket.map_or("SOCKET".into(), |path| path.display().to_string());
        let Some(device) = self.device() else {
            return vec![Finding::bad(
                "there is no -device vhost-user-test-device-pci",
                format!(
                    "give QEMU -chardev socket,id=share,path={path} -device \
                     vhost-user-test-device-pci,chardev=share,virtio-id=9,num_vqs=1,vq_size=128,\
                     config_size={size}"
                ),
            )];
        };
        let mut findings = Vec::new();
        let mut demand = |name: &str, expected: &str, why: &str| match device.get(name) {
            Some(value) if value == expected => {}
            value => findings.push(Finding::bad(
                format!(
                    "the device has {name}={}: {why}",
                    value.unwrap_or("nothing")
                ),
                format!("give it {name}={expected}"),
            )),
        };
        demand("virtio-id", VIRTIO_ID, "the guest finds no 9P device");
        demand(
            "config_size",
            &size,
            "the guest cannot read the tag; it is the length of the tag and 2",
        );
        if device.get("num_vqs").is_some_and(|number| number != "1") {
            demand("num_vqs", "1", "the device has one queue");
        }
        match (self.socket(), socket) {
            (None, _) => findings.push(Finding::bad(
                "the device's chardev has no path",
                format!("give QEMU -chardev socket,id=ID,path={path}, and the device chardev=ID"),
            )),
            (Some(own), Some(daemon)) if Path::new(own) != daemon => findings.push(Finding::bad(
                format!("QEMU connects to {own}, and the daemon's socket is {path}"),
                format!("give the chardev path={path}"),
            )),
            _ => {}
        }
        if findings.is_empty() {
            findings.push(Finding::good(format!(
                "the device is right for the tag \"{tag}\""
            )));
        }
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    const MEMORY: &str =
        "-object memory-backend-memfd,id=mem,size=1G,share=on -numa node,memdev=mem";
    const DEVICE: &str = "-chardev socket,id=share,path=/run/s -device \
        vhost-user-test-device-pci,chardev=share,virtio-id=9,num_vqs=1,vq_size=128,config_size=6";

    fn findings(line: &str) -> Vec<Finding> {
        let words: Vec<OsString> = line.split_whitespace().map(Into::into).collect();
        CommandLine::new(&words).examine(&"host".parse().unwrap(), Some("/run/s".as_ref()))
    }

    /// What is wrong with a line, one finding for each.
    fn wrong(line: &str) -> Vec<String> {
        let bad = |finding: &Finding| finding.verdict == Verdict::Bad;
        let found = findings(line);
        found
            .iter()
            .filter(|f| bad(f))
            .map(|f| f.to_string())
            .collect()
    }

    #[test]
    fn the_line_of_the_readme_is_good() {
        let found = findings(&format!("qemu -m 1G {MEMORY} {DEVICE}"));
        assert_eq!(found.len(), 2);
        assert!(
            found.iter().all(|found| found.verdict == Verdict::Good),
            "{found:?}"
        );
    }

    #[test]
    fn the_lines_of_libvirt_are_understood() {
        let line = "qemu -machine pc-q35,usb=off,memory-backend=pc.ram \
            -object {\"qom-type\":\"memory-backend-memfd\",\"id\":\"pc.ram\",\"share\":true} \
            -chardev socket,id=share,path=/run/s \
            -device {\"driver\":\"vhost-user-test-device-pci\",\"chardev\":\"share\",\
            \"virtio-id\":9,\"config_size\":6}";
        assert_eq!(wrong(line), Vec::<String>::new());
        let private = line.replace("memfd", "ram").replace("true", "false");
        assert!(wrong(&private)[0].contains("add share=on"));
    }

    #[test]
    fn each_mistake_is_found_with_how_to_mend_it() {
        let good = format!("qemu {MEMORY} {DEVICE}");
        for (from, to, says) in [
            (MEMORY, "", "memory-backend-memfd"),
            ("memdev=mem", "memdev=other", "no -object of this id"),
            ("share=on", "share=off", "add share=on"),
            (
                "memfd,id=mem,size=1G,share=on",
                "file,id=mem",
                "add share=on",
            ),
            ("config_size=6", "config_size=4", "config_size=6"),
            (",config_size=6", "", "config_size=6"),
            ("virtio-id=9", "virtio-id=26", "virtio-id=9"),
            ("num_vqs=1", "num_vqs=2", "num_vqs=1"),
            ("path=/run/s", "path=/run/t", "path=/run/s"),
            ("chardev=share", "chardev=none", "path=/run/s"),
            (DEVICE, "", "config_size=6"),
        ] {
            let found = wrong(&good.replace(from, to));
            assert_eq!(found.len(), 1, "{to}: {found:?}");
            assert!(found[0].contains(says), "{to}: {found:?}");
        }
    }
}
