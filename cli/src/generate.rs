//! Man pages and completions, from the command line's own definition: what a package puts into /usr/share.

use std::fs;
use std::io;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::args::Cli;

/// Where Debian's shells look, below /usr/share.
const COMPLETIONS: [(Shell, &str, &str); 3] = [
    (Shell::Bash, "bash-completion/completions", "virbistream"),
    (Shell::Zsh, "zsh/vendor-completions", "_virbistream"),
    (Shell::Fish, "fish/vendor_completions.d", "virbistream.fish"),
];

/// Writes all of it below `share`.
pub(crate) fn run(share: &Path) -> io::Result<()> {
    let mut command = command();
    command.build();
    let man = share.join("man/man1");
    fs::create_dir_all(&man)?;
    for page in [&command].into_iter().chain(command.get_subcommands()) {
        let name = page.get_display_name().unwrap_or("virbistream");
        fs::write(man.join(format!("{name}.1")), page_text(name, page.clone())?)?;
    }
    for (shell, directory, file) in COMPLETIONS {
        let directory = share.join(directory);
        fs::create_dir_all(&directory)?;
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut self::command(), "virbistream", &mut text);
        fs::write(directory.join(file), text)?;
    }
    Ok(())
}

/// The command line without what is hidden, which completions would show.
fn command() -> Command {
    let whole = Cli::command();
    let shown = whole.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    Command::new("virbistream")
        .version(env!("CARGO_PKG_VERSION"))
        .about(whole.get_about().cloned().unwrap_or_default())
        .after_long_help(whole.get_after_long_help().cloned().unwrap_or_default())
        .args(whole.get_arguments().cloned())
        .subcommand_required(true)
        .disable_help_subcommand(true)
        .subcommands(shown)
}

fn page_text(name: &str, command: Command) -> io::Result<Vec<u8>> {
    let more = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
    let is_whole = command.has_subcommands();
    let page = Man::new(command);
    let mut text = title(name).into_bytes();
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    if is_whole {
        page.render_subcommands_section(&mut text)?;
    }
    let mut sections = Roff::new();
    more.lines().for_each(|line| add_line(&mut sections, line));
    sections.control("SH", ["SEE ALSO"]);
    let others = if is_whole { "" } else { "virbistream(1), " };
    sections.text([roman(format!("{others}virsh(1), libvirtd(8), /usr/share/doc/virbistream/migration.md"))]);
    sections.to_writer(&mut text)?;
    Ok(text)
}

/// Not clap_mangen's: it writes a date that is empty as none at all, and the version would stand in its place.
fn title(name: &str) -> String {
    format!(".TH {name} 1 \"\" \"virbistream {}\" \"virbistream\"\n", env!("CARGO_PKG_VERSION"))
}

/// A line as `help.rs` has them.
fn add_line(sections: &mut Roff, line: &str) {
    match line.trim_start().split_once("  ") {
        Some((name, meaning)) => {
            sections.control("TP", []);
            sections.text([bold(name)]);
            sections.text([roman(meaning.trim_start())]);
        }
        None if line.ends_with(':') => {
            sections.control("SH", [line.trim_end_matches(':').to_uppercase().as_str()]);
        }
        None => {}
    }
}
