// SPDX-License-Identifier: Apache-2.0
//! Which channel is what in exec and attach: fixed in WebSocket, said by the client in SPDY.

use std::time::Duration;

use super::Stream;
use super::channels::{ERROR, RESIZE, STDERR, STDIN, STDOUT};
use super::link::{Link, Said, Say};
use super::spdy::headers::Headers;

/// What a client may say before it has opened all its channels. It waits for them, as a rule.
const EARLY_MAX: usize = 16;

/// What a channel is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Stdin,
    Stdout,
    Stderr,
    Error,
    Resize,
}

impl Role {
    /// By the `streamtype` header.
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "stdin" => Self::Stdin,
            "stdout" => Self::Stdout,
            "stderr" => Self::Stderr,
            "error" => Self::Error,
            "resize" => Self::Resize,
            _ => return None,
        })
    }
}

/// The numbers of a session's channels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Roles {
    pub(super) stdin: Option<u32>,
    pub(super) stdout: Option<u32>,
    pub(super) stderr: Option<u32>,
    pub(super) error: Option<u32>,
    pub(super) resize: Option<u32>,
}

impl Roles {
    /// Those of WebSocket.
    pub(super) const FIXED: Self = Self {
        stdin: Some(STDIN),
        stdout: Some(STDOUT),
        stderr: Some(STDERR),
        error: Some(ERROR),
        resize: Some(RESIZE),
    };

    pub(super) fn of(&self, channel: u32) -> Option<Role> {
        [
            (self.stdin, Role::Stdin),
            (self.stdout, Role::Stdout),
            (self.stderr, Role::Stderr),
            (self.error, Role::Error),
            (self.resize, Role::Resize),
        ]
        .into_iter()
        .find_map(|(number, role)| (number == Some(channel)).then_some(role))
    }

    fn slot(&mut self, role: Role) -> &mut Option<u32> {
        match role {
            Role::Stdin => &mut self.stdin,
            Role::Stdout => &mut self.stdout,
            Role::Stderr => &mut self.stderr,
            Role::Error => &mut self.error,
            Role::Resize => &mut self.resize,
        }
    }

    /// Takes in a channel that a client opened, and says how it is answered: it must be of a known type
    /// and the first of that.
    pub(super) fn place(&mut self, channel: u32, headers: &Headers) -> Say {
        let role = headers.get("streamtype").and_then(Role::named);
        match role.map(|role| self.slot(role)) {
            Some(slot @ None) => {
                *slot = Some(channel);
                Say::Accept(channel)
            }
            _ => Say::Reset(channel),
        }
    }

    fn lacks(&self, wanted: &[Role]) -> bool {
        wanted.iter().any(|role| {
            let mut roles = *self;
            roles.slot(*role).is_none()
        })
    }
}

/// The channels that a SPDY client must open before its session begins. The one for terminal sizes may
/// come later, or never: whoever asks may not know that there is a terminal.
pub(super) fn wanted(stream: &Stream) -> Vec<Role> {
    let (Stream::Exec {
        stdin,
        stdout,
        stderr,
        ..
    }
    | Stream::Attach {
        stdin,
        stdout,
        stderr,
        ..
    }) = stream
    else {
        return Vec::new();
    };
    let all = [
        (true, Role::Error),
        (*stdin, Role::Stdin),
        (*stdout, Role::Stdout),
        (*stderr, Role::Stderr),
    ];
    let all = all.into_iter();
    all.filter_map(|(wanted, role)| wanted.then_some(role))
        .collect()
}

/// The first channel of WebSocket on which the server writes.
pub(super) fn first_output(stream: &Stream) -> u32 {
    let wanted = wanted(stream);
    if wanted.contains(&Role::Stdout) {
        STDOUT
    } else if wanted.contains(&Role::Stderr) {
        STDERR
    } else {
        ERROR
    }
}

/// Waits until the client has opened what the session needs.
///
/// # Errors
/// The client is gone, or took too long, in which case it is told if it has an error channel.
pub(super) async fn await_channels(
    link: &mut Link,
    wanted: &[Role],
    deadline: Duration,
) -> Option<(Roles, Vec<Said>)> {
    let (mut roles, mut early) = (Roles::default(), Vec::new());
    let opening = async {
        while roles.lacks(wanted) {
            match link.inbox.recv().await? {
                Said::Opened(channel, headers) => {
                    let answer = roles.place(channel, &headers);
                    link.outbox.send(answer).await.ok()?;
                }
                other if early.len() < EARLY_MAX => early.push(other),
                _ => return None,
            }
        }
        Some(())
    };
    match tokio::time::timeout(deadline, opening).await {
        Ok(Some(())) => Some((roles, early)),
        Ok(None) => None,
        Err(_) => {
            if let Some(channel) = roles.error {
                let text = "timed out waiting for client to create streams";
                let _ = link.outbox.send(Say::Data(channel, text.into())).await;
            }
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::link;
    use super::*;

    fn opened(channel: u32, kind: &str) -> Said {
        Said::Opened(channel, Headers(vec![("streamtype".into(), kind.into())]))
    }

    #[tokio::test]
    async fn the_channels_that_were_asked_for_are_awaited() {
        let (mut link, mut far) = link::pair();
        let client = async {
            let mut answers = Vec::new();
            for said in [
                opened(1, "error"),
                opened(3, "video"),
                opened(5, "stdin"),
                Said::Data(5, Bytes::from_static(b"early")),
                opened(7, "stdin"),
                opened(9, "stdout"),
            ] {
                let opening = matches!(said, Said::Opened(..));
                far.incoming.send(said).await.unwrap();
                if opening {
                    answers.push(far.outgoing.recv().await.unwrap());
                }
            }
            answers
        };
        let wanted = [Role::Error, Role::Stdin, Role::Stdout];
        let deadline = Duration::from_secs(30);
        let (opened, answers) = tokio::join!(await_channels(&mut link, &wanted, deadline), client);
        let (roles, early) = opened.unwrap();
        assert_eq!(
            (roles.error, roles.stdin, roles.stdout),
            (Some(1), Some(5), Some(9))
        );
        assert_eq!((roles.of(5), roles.of(7)), (Some(Role::Stdin), None));
        assert_eq!(early.len(), 1);
        let expected = [
            Say::Accept(1),
            Say::Reset(3),
            Say::Accept(5),
            Say::Reset(7),
            Say::Accept(9),
        ];
        assert_eq!(answers, expected);
    }

    #[tokio::test]
    async fn a_client_that_opens_too_little_is_told() {
        let (mut link, mut far) = link::pair();
        far.incoming.send(opened(1, "error")).await.unwrap();
        let wanted = [Role::Error, Role::Stdin];
        let none = await_channels(&mut link, &wanted, Duration::from_millis(10)).await;
        assert_eq!(none, None);
        assert_eq!(far.outgoing.recv().await, Some(Say::Accept(1)));
        assert!(matches!(far.outgoing.recv().await, Some(Say::Data(1, _))));
    }
}
