// SPDX-License-Identifier: Apache-2.0
//! `ps`: the host's ps, of which only the container's lines are shown; where there is none, what
//! /proc says.

use std::io::ErrorKind;
use std::process::{Command, ExitCode};

use super::args::Format;
use super::cgroups::Cgroup;
use super::show::print;
use super::{Attempt, Context, Failure, Outcome};

pub(super) fn ps(context: &Context, format: Format, id: &str, options: Vec<String>) -> Outcome {
    let record = context.store.load(id)?;
    let mut pids = Cgroup::of_record(&record)?.pids()?;
    // Every process is in one cgroup of each hierarchy.
    pids.sort_unstable();
    pids.dedup();
    match format {
        Format::Json => print(&serde_json::json!(pids).to_string())?,
        Format::Table => print(table(&pids, options)?.trim_end_matches('\n'))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn table(pids: &[u32], mut options: Vec<String>) -> Outcome<String> {
    let asked = !options.is_empty();
    if !asked {
        options.push("-ef".to_owned());
    }
    let output = match Command::new("ps").args(&options).output() {
        Err(error) if error.kind() == ErrorKind::NotFound && !asked => return Ok(own_table(pids)),
        other => other.attempt("running ps")?,
    };
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let message = format!("ps: {}: {text}{}", output.status, said.trim_end());
        return Err(Failure::new(message));
    }
    select(&text, pids)
}

/// The title and the lines of these processes.
fn select(text: &str, pids: &[u32]) -> Outcome<String> {
    let mut lines = text.lines();
    let title = lines.next().unwrap_or_default();
    let column = title.split_whitespace().position(|name| name == "PID");
    let column =
        column.ok_or_else(|| Failure::new("couldn't find PID field in ps output".to_owned()))?;
    let mut table = format!("{title}\n");
    for line in lines.filter(|line| !line.trim().is_empty()) {
        let field = line.split_whitespace().nth(column).unwrap_or_default();
        let pid: u32 = field.parse().attempt("unable to parse pid")?;
        if pids.contains(&pid) {
            table.push_str(line);
            table.push('\n');
        }
    }
    Ok(table)
}

/// The columns of /proc that are always there. A process that has just ended has no line.
fn own_table(pids: &[u32]) -> String {
    let mut table = format!("{:<8} {:>7} {:>7} CMD\n", "UID", "PID", "PPID");
    for pid in pids {
        table.push_str(&own_line(*pid).unwrap_or_default());
    }
    table
}

fn own_line(pid: u32) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next())
    };
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
    let command = match arguments.trim_end() {
        // As ps does with what has no arguments.
        "" => format!("[{}]", field("Name:")?),
        command => command.to_owned(),
    };
    let (uid, parent) = (field("Uid:")?, field("PPid:")?);
    Some(format!("{uid:<8} {pid:>7} {parent:>7} {command}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_containers_lines_are_kept() {
        let text = "UID PID PPID CMD\nroot 1 0 init\nroot 17 1 sh -c 1\n\n";
        assert_eq!(
            select(text, &[17]).expect("a table"),
            "UID PID PPID CMD\nroot 17 1 sh -c 1\n"
        );
        assert!(select("UID CMD\n", &[]).is_err());
    }

    #[test]
    fn without_ps_proc_says_it() {
        let own = std::process::id();
        let table = own_table(&[own, u32::MAX]);
        assert_eq!(table.lines().count(), 2, "{table}");
        assert!(table.contains(&own.to_string()));
    }
}
