// SPDX-License-Identifier: Apache-2.0
//! One bar per layer, on stderr. Nothing is drawn where stderr is not a terminal.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::super::digest::Digest;
use super::super::types::{Progress, ProgressFn};

#[derive(Clone, Default)]
pub(super) struct Bars {
    all: MultiProgress,
    layers: Arc<Mutex<HashMap<Digest, ProgressBar>>>,
}

impl Bars {
    pub(super) fn new() -> Bars {
        Bars::default()
    }

    pub(super) fn callback(&self) -> ProgressFn {
        let bars = self.clone();
        Arc::new(move |progress| bars.show(progress))
    }

    /// Leaves the terminal in order; the final state of each layer stays visible.
    pub(super) fn finish(&self) {
        let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        for bar in layers.values() {
            if !bar.is_finished() {
                bar.abandon();
            }
        }
    }

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
