//! libvirt's own options of a migration, as virsh has them: passed on as they are.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches};

/// What virsh takes without a value.
const FLAGS: [(&str, &str); 16] = [
    ("p2p", "The source's libvirtd speaks to the destination's, and not virsh"),
    ("persistent", "Define the guest at the destination"),
    ("undefinesource", "Forget the guest at the source afterwards"),
    ("suspend", "Do not run the guest at the destination"),
    ("copy-storage-inc", "Copy only what differs from backing files that are at both hosts, instead of all"),
    ("copy-storage-synchronous-writes", "Have each write of the guest's reach the destination before it counts"),
    ("change-protection", "Let nobody change the guest's definition meanwhile"),
    ("unsafe", "Go on where libvirt fears for the data"),
    ("abort-on-error", "Give up on errors of the disks at the source"),
    ("auto-converge", "Slow the guest down where its memory changes too fast"),
    ("compressed", "Compress the memory"),
    ("parallel", "Move the memory over several streams"),
    ("postcopy", "Allow that memory follows once the guest runs at the destination"),
    ("postcopy-after-precopy", "Do so after the first pass"),
    ("timeout-suspend", "Suspend the guest when --timeout has passed"),
    ("timeout-postcopy", "Switch to post-copy when --timeout has passed"),
];

/// What it takes with one.
const VALUES: [(&str, &str, &str); 15] = [
    (
        "migrate-disks",
        "DISKS",
        "The disks to copy, by their targets, with commas; all that are not shared, if this is not given",
    ),
    ("bandwidth", "MIB", "The most that libvirt moves in a second, in MiB"),
    ("timeout", "SECONDS", "Suspend the guest when it has not moved after so long"),
    ("dname", "NAME", "The guest's name at the destination"),
    ("xml", "FILE", "The guest's definition at the destination"),
    ("persistent-xml", "FILE", "The same, of what --persistent defines"),
    ("parallel-connections", "N", "Streams of --parallel"),
    ("postcopy-bandwidth", "MIB", "The most that is moved in a second of post-copy, in MiB"),
    ("auto-converge-initial", "PERCENT", "How much the guest is slowed down at first"),
    ("auto-converge-increment", "PERCENT", "And how much more each time"),
    ("comp-methods", "METHODS", "How the memory is compressed"),
    ("comp-mt-level", "N", "Level of the method mt"),
    ("comp-mt-threads", "N", "Threads that compress"),
    ("comp-mt-dthreads", "N", "Threads that expand"),
    ("comp-xbzrle-cache", "BYTES", "Cache of the method xbzrle"),
];

/// Values that virsh takes as whole numbers; it would say so only when much has been done.
const NUMBERS: [&str; 5] = ["MIB", "SECONDS", "N", "PERCENT", "BYTES"];

fn parse_number(text: &str) -> Result<String, String> {
    match text.parse::<u64>() {
        Ok(number) => Ok(number.to_string()),
        Err(_) => Err("libvirt takes a whole number, without a unit".into()),
    }
}

/// Those that were given, for virsh.
#[derive(Clone, Debug, Default)]
pub(crate) struct LibvirtOptions(Vec<String>);

impl LibvirtOptions {
    pub(super) fn words(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    pub(super) fn has(&self, flag: &str) -> bool {
        self.0.iter().any(|word| word.strip_prefix("--") == Some(flag))
    }

    pub(super) fn value(&self, name: &str) -> Option<&str> {
        let at = self.0.iter().position(|word| word.strip_prefix("--") == Some(name))?;
        self.0.get(at + 1).map(String::as_str)
    }
}

impl Args for LibvirtOptions {
    fn augment_args(command: Command) -> Command {
        let heading = "Options of libvirt's (see virsh(1))";
        let flags = FLAGS.map(|(name, help)| Arg::new(name).long(name).help(help).action(ArgAction::SetTrue));
        let values = VALUES.map(|(name, value, help)| {
            let arg = Arg::new(name).long(name).value_name(value).help(help);
            if NUMBERS.contains(&value) { arg.value_parser(parse_number) } else { arg }
        });
        command.args(flags.into_iter().chain(values).map(|arg| arg.help_heading(heading)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for LibvirtOptions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let flags = FLAGS.iter().filter(|(name, _)| matches.get_flag(name)).map(|(name, _)| format!("--{name}"));
        let values = VALUES
            .iter()
            .filter_map(|(name, ..)| Some([format!("--{name}"), matches.get_one::<String>(name)?.clone()]));
        Ok(Self(flags.chain(values.flatten()).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
