// SPDX-License-Identifier: Apache-2.0
//! The table of `podwright image ls`.

use comfy_table::{Table, presets};
use indicatif::HumanBytes;

use super::super::types::Image;

/// One line per tag; images without one get a line of their own.
pub(super) fn images(images: &[Image]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["IMAGE", "TAG", "IMAGE ID", "SIZE"]);
    let mut rows: Vec<[String; 4]> = images.iter().flat_map(rows).collect();
    rows.sort();
    for row in rows {
        table.add_row(row);
    }
    table
        .lines()
        .map(|line| format!("{}\n", line.trim()))
        .collect()
}

fn rows(image: &Image) -> Vec<[String; 4]> {
    let row = |name: &str, tag: &str| {
        [
            name.to_owned(),
            tag.to_owned(),
            image.id.short().to_owned(),
            HumanBytes(image.size).to_string(),
        ]
    };
    if image.repo_tags.is_empty() {
        let name = image
            .repo_digests
            .first()
            .and_then(|name| name.split_once('@'))
            .map_or("<none>", |(name, _)| name);
        return vec![row(name, "<none>")];
    }
    image
        .repo_tags
        .iter()
        .map(|name| match name.rsplit_once(':') {
            Some((name, tag)) => row(name, tag),
            None => row(name, ""),
        })
        .collect()
}
