//! docs/migration.md, followed to the letter: its commands, in their order, on two hosts that have nothing but libvirt, QEMU and a VM.
//!
//! A block of the document whose first line says ``` and then `sh source`, `sh destination` or `sh both` is run there; with `background` it
//! goes on until the end. `toml destination PATH` is what that file is to have. Other blocks are not run.

mod support;

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use serde_json::Value;
use support::bytes::{MIB, Noise};
use support::guest::{Guest, RING_MIB, assert_ring_is_whole, newest_in_ring};
use support::host::Host;
use support::process::{Process, Run};
use support::{PATIENCE, Scratch, alone, need};

const GUIDE: &str = include_str!("../../docs/migration.md");

const DISK_MIB: u64 = 64;

/// A step of the guide.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    /// What the block is, behind its three quotes: a language and words.
    words: Vec<&'static str>,
    text: String,
}

/// The blocks that say where they are for.
fn steps(guide: &'static str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut lines = guide.lines();
    while let Some(line) = lines.next() {
        let Some(words) = line.strip_prefix("```") else { continue };
        let text =
            lines.by_ref().take_while(|line| *line != "```").fold(String::new(), |text, line| text + line + "\n");
        let words: Vec<_> = words.split(' ').collect();
        if words.len() > 1 {
            steps.push(Step { words, text });
        }
    }
    steps
}

/// The hosts, and what goes on in the background.
struct Hosts {
    source: Host,
    destination: Host,
    running: Vec<Process>,
}

impl Hosts {
    #[track_caller]
    fn follow(&mut self, step: &Step) {
        eprintln!("--- {}\n{}", step.words.join(" "), step.text);
        match &step.words[..] {
            ["sh", "both"] => {
                [&self.source, &self.destination].into_iter().for_each(|host| drop(host.succeed(&step.text)))
            }
            ["sh", place] => drop(self.host(place).succeed(&step.text)),
            ["sh", place, "background"] => {
                let process = self.host(place).run(&step.text).start();
                process.ready();
                self.running.push(process);
            }
            ["toml", place, path] => {
                drop(self.host(place).succeed(&format!("cat >{path} <<'END OF FILE'\n{}END OF FILE\n", step.text)));
            }
            words => panic!("nobody knows what to do with a block for {words:?}"),
        }
    }

    #[track_caller]
    fn host(&self, place: &str) -> &Host {
        match place {
            "source" => &self.source,
            "destination" => &self.destination,
            _ => panic!("there is no host `{place}`"),
        }
    }
}

/// What both hosts need to run the VM: files that a real one's share of the network or its images would have.
fn prepare(host: &Host, guest: &Guest) {
    fs::copy(&guest.kernel, host.image("vmlinuz")).expect("copied");
    fs::copy(&guest.initrd, host.image("initrd")).expect("copied");
    fs::write(host.image("web.console"), "").expect("a new file");
    fs::set_permissions(host.image("web.console"), PermissionsExt::from_mode(0o666)).expect("a mode");
}

/// Starts the VM `web`, and waits until it writes.
#[track_caller]
fn start_web(source: &Host) {
    let disk = fs::File::create(source.image("web.raw")).expect("a new file");
    disk.set_len(DISK_MIB * MIB).expect("its length");
    let mut rest = vec![0; ((DISK_MIB - RING_MIB) * MIB) as usize];
    Noise::new(3).fill(&mut rest);
    disk.write_all_at(&rest, RING_MIB * MIB).expect("written");
    let xml = "<domain type='qemu'>
        <name>web</name><memory unit='MiB'>129</memory>
        <os>
          <type arch='x86_64' machine='pc'>hvm</type>
          <kernel>/var/lib/libvirt/images/vmlinuz</kernel><initrd>/var/lib/libvirt/images/initrd</initrd>
          <cmdline>console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check mitigations=off nokaslr
            vbs.disks=1 vbs.rate=50 vbs.ram=50 vbs.pages=500 vbs.life=3600</cmdline>
        </os>
        <devices>
          <emulator>/usr/bin/qemu-system-x86_64</emulator>
          <disk type='file' device='disk'>
            <driver name='qemu' type='raw'/><source file='/var/lib/libvirt/images/web.raw'/><target dev='vda' bus='virtio'/>
          </disk>
          <controller type='usb' model='none'/>
          <serial type='pty'><log file='/var/lib/libvirt/images/web.console' append='on'/></serial>
          <memballoon model='none'/>
        </devices>
      </domain>";
    source.succeed(&format!("cat >web.xml <<'END OF FILE'\n{xml}\nEND OF FILE\nvirsh define web.xml\nvirsh start web"));
    source.wait_for_records(50);
}

/// Made as the guide says, but for how the binary is optimised, and in its place.
fn package(directory: &Path) {
    need("dpkg-shlibdeps", "dpkg-dev");
    let blocks: Vec<_> = GUIDE.split("```sh\n").skip(1).filter_map(|block| block.split("```").next()).collect();
    let building = blocks.iter().find(|block| block.starts_with("cargo build ")).expect("how it is built");
    let commands: Vec<Vec<_>> = building.lines().map(|line| line.split(' ').collect()).collect();
    let [["cargo", "build", "--release", "-p", package], ["packaging/debian", binary, "~"]] =
        commands.iter().map(Vec::as_slice).collect::<Vec<_>>()[..]
    else {
        panic!("nobody knows whether this makes a package:\n{building}");
    };
    assert!(GUIDE.contains("and `dpkg-dev`:\n\n```sh\ncargo build "), "what it needs is not said");
    let name = binary.strip_prefix("target/release/").expect("where cargo puts a binary");
    assert!(binaries_of(package).contains(&name.to_owned()), "cargo makes no `{name}` of `{package}`");
    let script = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/debian"));
    Run::at("packaging/debian", script).arg(env!("CARGO_BIN_EXE_virbistream")).arg(directory).succeed(5 * PATIENCE);
}

/// The programs that cargo makes of a package of this workspace.
fn binaries_of(package: &str) -> Vec<String> {
    let cargo =
        Run::at("cargo", Path::new(env!("CARGO"))).args(["metadata", "--frozen", "--no-deps", "--format-version=1"]);
    let said =
        cargo.args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")]).succeed(PATIENCE).stdout;
    let metadata: Value = serde_json::from_str(&said).expect("JSON");
    let all = |of: &Value, key: &str| of[key].as_array().cloned().unwrap_or_default();
    let packages = all(&metadata, "packages").into_iter().filter(|found| found["name"] == package);
    let targets = packages.flat_map(|package| all(&package, "targets"));
    let binaries = targets.filter(|target| all(target, "kind").contains(&"bin".into()));
    binaries.filter_map(|target| Some(target["name"].as_str()?.to_owned())).collect()
}

#[test]
fn the_guide_followed_to_the_letter_migrates_a_vm_between_two_fresh_hosts() {
    let _alone = alone();
    let (shared, guest) = (Scratch::new(), Guest::build());
    let [source, destination] = Host::pair(&shared);
    package(&source.image(""));
    source.succeed("mv /var/lib/libvirt/images/virbistream_*.deb /root/");
    [&source, &destination].into_iter().for_each(|host| prepare(host, &guest));
    start_web(&source);
    let mut hosts = Hosts { source, destination, running: Vec::new() };
    let steps = steps(GUIDE);
    assert!(steps.len() >= 10, "{steps:?}");
    for step in &steps {
        hosts.follow(step);
    }
    let Hosts { source, destination, running } = hosts;
    let left_at = newest_in_ring(&source.image("web.raw"));
    destination.wait_for_records(left_at + 50);
    assert_eq!(destination.succeed("virsh domstate web").stdout.trim(), "running");
    assert_defined_at_destination_alone([&source, &destination]);
    running.into_iter().for_each(Host::end);
    assert_carried_by_one_link(&shared);
    destination.succeed("virsh destroy web");
    let image = destination.image("web.raw");
    assert_ring_is_whole(&image, 0, newest_in_ring(&image));
    let rest = |host: &Host| fs::read(host.image("web.raw")).expect("the image").split_off((RING_MIB * MIB) as usize);
    assert!(rest(&source) == rest(&destination), "the disks differ");
}

/// What is still there when the hosts have been booted.
#[track_caller]
fn assert_defined_at_destination_alone([source, destination]: [&Host; 2]) {
    source.run("virsh dominfo web").finish(PATIENCE).assert_failed_saying(&["failed to get domain"]);
    for (asked, what) in
        [("dominfo web", "Persistent"), ("pool-info images", "Persistent"), ("pool-info images", "Autostart")]
    {
        let said = destination.succeed(&format!("virsh {asked}")).stdout;
        let yes = said
            .lines()
            .any(|line| line.split_once(':').is_some_and(|(key, value)| key == what && value.trim() == "yes"));
        assert!(yes, "virsh {asked}: not {what}:\n{said}");
    }
}

/// Beside those of `probe` and of the dry run.
#[track_caller]
fn assert_carried_by_one_link(shared: &Scratch) {
    let said = fs::read_to_string(shared.join("serve.out")).expect("what serve said");
    assert_eq!(said.matches("link accepted").count(), 3, "{said}");
    for target in ["directory", "libvirt", "disks", "memory"] {
        assert!(said.contains(&format!("/{target}` done")), "no stream to {target}:\n{said}");
    }
}

#[test]
fn blocks_say_where_they_are_for() {
    let found = steps("a\n```sh both\nx\n\ny\n```\n```sh\nno\n```\n```toml destination /a\n```\n");
    let step = |words: &[&'static str], text: &str| Step { words: words.to_vec(), text: text.into() };
    assert_eq!(found, [step(&["sh", "both"], "x\n\ny\n"), step(&["toml", "destination", "/a"], "")]);
}

/// The system's own words, which the tool passes on; and what stands for a name.
const OTHERS: [&str; 9] = [
    "Address already in use",
    "Connection refused",
    "timed out",
    "failed to lookup address information",
    "No such file or directory",
    "Permission denied",
    "the CPU is incompatible with host CPU",
    "serve.toml:LINE",
    "NAME",
];

/// The lines of a source that are in the tool: no comments, and nothing that is for unit tests alone.
fn in_tool(source: &str) -> String {
    let (mut kept, mut lines) = (String::new(), source.lines());
    while let Some(line) = lines.next() {
        let code = line.trim_start();
        if code == "#[cfg(test)]" {
            // By rustfmt's indentation: to the end of the item's first line, or to the brace that closes it.
            let end = format!("{}}}", &line[..line.len() - code.len()]);
            let mut item = lines.by_ref().skip_while(|line| line.trim_start().starts_with("#["));
            if item.next().is_some_and(|first| !first.ends_with(';') && !first.ends_with('}') && !first.ends_with(','))
            {
                item.find(|line| *line == end);
            }
        } else if !code.starts_with("//") {
            kept += line.split(" // ").next().unwrap_or_default();
            kept.push('\n');
        }
    }
    kept
}

/// All text of the tool and the library.
fn sources() -> String {
    let mut text = String::new();
    let mut directories =
        vec![concat!(env!("CARGO_MANIFEST_DIR"), "/src").into(), concat!(env!("CARGO_MANIFEST_DIR"), "/../src").into()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir::<std::path::PathBuf>(directory).expect("a directory of sources") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                _ if path.file_stem().is_some_and(|name| name == "tests") => {}
                true => directories.push(path),
                false => text += &in_tool(&fs::read_to_string(path).expect("a source")),
            }
        }
    }
    text
}

#[test]
fn comments_and_unit_tests_are_in_no_tool() {
    let source = "//! a\nfn b() {\n    c(); // d\n    #[cfg(test)]\n    e();\n    #[cfg(test)]\n    if f {\n        g();\n    }\n}\n\
                  #[cfg(test)]\nmod tests;\n/// h\nfn i() {}\n#[cfg(test)]\nmod tests {\n    fn j() {\n    }\n}\nfn k() {}\n";
    assert_eq!(in_tool(source), "fn b() {\n    c();\n}\nfn i() {}\nfn k() {}\n");
}

/// What somebody searches for is what is printed: its fixed parts stand in the sources.
#[test]
fn the_sentences_that_the_guide_explains_are_those_of_the_tool() {
    let sources = sources();
    let (_, failures) = GUIDE.split_once("## When it fails").expect("a chapter on failures");
    let (ours, _) = failures.split_once("**virsh fails**").expect("what virsh says is libvirt's");
    let rows = ours.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| what is said"));
    let said = rows.flat_map(|row| row.split(" | ").next().expect("a first column").split('`').skip(1).step_by(2));
    let mut compared = 0;
    for sentence in said {
        let fixed = OTHERS.iter().fold(sentence.to_owned(), |sentence, other| sentence.replace(other, "…"));
        for part in fixed.split('…').map(|part| part.trim_matches([' ', ':', ','])).filter(|part| !part.is_empty()) {
            assert!(sources.contains(part), "`{part}`, of `{sentence}`, is said nowhere");
            compared += 1;
        }
    }
    assert!(compared > 30, "{compared} parts of sentences were compared");
}
