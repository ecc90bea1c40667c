// SPDX-License-Identifier: Apache-2.0
//! Files of credentials: a file that is refused is refused without showing what it holds.

use std::path::Path;

use cri::image::credentials::CredentialFile;

const SECRET: &str = "hunter2";

pub fn check(data: &[u8]) {
    let shown = match CredentialFile::parse(Path::new("config.json"), data) {
        Err(error) => error.to_string(),
        Ok(file) => ["busybox", "registry.example:5000/team/app", "a.b.example/x"]
            .map(|name| file.kept(&name.parse().expect("a reference")))
            .into_iter()
            .map(|found| match found {
                Ok(auth) => format!("{auth:?}"),
                // The key of the entry, which is no secret, is in it.
                Err(error) => error
                    .to_string()
                    .split("entry of")
                    .next()
                    .unwrap_or("")
                    .to_owned(),
            })
            .collect(),
    };
    assert!(!shown.contains(SECRET), "{shown}");
}
