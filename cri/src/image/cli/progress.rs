// SPDX-License-Identifier: Apache-2.0
//! What a pull is doing, on stderr: one bar per layer on a terminal, else a line per step.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};

use super::super::digest::Digest;
use super::super::types::{Progress, ProgressFn};

/// A log gets a line about a transfer's progress this often.
const LINES_EVERY: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub(super) enum Bars {
    Terminal(Terminal),
    Lines(Arc<Mutex<Lines>>),
}

#[derive(Clone, Default)]
pub(super) struct Terminal {
    all: MultiProgress,
    layers: Arc<Mutex<HashMap<Digest, ProgressBar>>>,
}

/// When each layer was last told about.
#[derive(Default)]
pub(super) struct Lines {
    told: HashMap<Digest, Instant>,
}

impl Bars {
    pub(super) fn new() -> Bars {
        match std::io::stderr().is_terminal() {
            true => Bars::Terminal(Terminal::default()),
            false => Bars::Lines(Arc::default()),
        }
    }

    pub(super) fn callback(&self) -> ProgressFn {
        match self.clone() {
            Bars::Terminal(bars) => Arc::new(move |progress| bars.show(progress)),
            Bars::Lines(lines) => Arc::new(move |progress| {
                let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(line) = lines.line(progress, Instant::now()) {
                    eprintln!("{line}");
                }
            }),
        }
    }

    /// Leaves the terminal in order; the final state of each layer stays visible.
    pub(super) fn finish(&self) {
        let Bars::Terminal(bars) = self else { return };
        let layers = bars.layers.lock().unwrap_or_else(PoisonError::into_inner);
        for bar in layers.values() {
            if !bar.is_finished() {
                bar.abandon();
            }
        }
    }
}

impl Lines {
    fn line(&mut self, progress: Progress, now: Instant) -> Option<String> {
        match progress {
            Progress::Resolved { manifest, layers } => {
                let size = layers.iter().map(|(_, size)| size).sum();
                let (count, size) = (layers.len(), HumanBytes(size));
                Some(format!("{manifest}: {count} layers, {size}"))
            }
            Progress::Downloading { layer, done, total } => {
                let due = match self.told.get(&layer) {
                    None => true,
                    Some(told) => now.duration_since(*told) >= LINES_EVERY,
                };
                due.then(|| {
                    self.told.insert(layer.clone(), now);
                    let (done, total) = (HumanBytes(done), HumanBytes(total));
                    format!("{}: downloading, {done} of {total}", layer.short())
                })
            }
            Progress::Unpacking { layer } => Some(format!("{}: unpacking", layer.short())),
            Progress::Ready { layer, cached } => {
                let text = if cached { "already here" } else { "done" };
                Some(format!("{}: {text}", layer.short()))
            }
        }
    }
}

impl Terminal {
    fn show(&self, progress: Progress) {
        match progress {
            Progress::Resolved { layers, .. } => {
                for (layer, size) in layers {
                    self.bar(&layer).set_length(size);
                }
            }
            Progress::Downloading { layer, done, total } => {
                let bar = self.bar(&layer);
                bar.set_message("downloading");
                bar.set_length(total);
                bar.set_position(done);
            }
            Progress::Unpacking { layer } => {
                let bar = self.bar(&layer);
                bar.set_message("unpacking");
                bar.set_position(bar.length().unwrap_or(0));
            }
            Progress::Ready { layer, cached } => {
                let text = if cached { "already here" } else { "done" };
                self.bar(&layer).finish_with_message(text);
            }
        }
    }

    fn bar(&self, layer: &Digest) -> ProgressBar {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            let style = ProgressStyle::with_template(
                "{prefix} {bar:30} {bytes:>10}/{total_bytes:<10} {msg}",
            );
            let bar = ProgressBar::new(0).with_message("waiting");
            bar.set_prefix(layer.short().to_owned());
            let bar = self.all.add(bar);
            match style {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
        };
        layers.entry(layer.clone()).or_insert_with(new).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_gets_few_lines_about_a_transfer() {
        let (mut lines, layer, start) = (Lines::default(), Digest::of(b"l"), Instant::now());
        let mut told = 0;
        for second in 0..20 {
            let progress = Progress::Downloading {
                layer: layer.clone(),
                done: second,
                total: 20,
            };
            let now = start + Duration::from_secs(second);
            told += usize::from(lines.line(progress, now).is_some());
        }
        assert_eq!(told, 4);
    }
}
