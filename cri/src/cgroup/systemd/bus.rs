// SPDX-License-Identifier: Apache-2.0
//! A connection to systemd over D-Bus.
//!
//! This is an own client of a few hundred lines on purpose: the known libraries start threads or
//! want an executor, and a process that is about to clone and to change namespaces may have neither.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::CgroupError;
use super::wire::{self, Call, FIXED, Message, Value, Writer};

/// systemd's own socket, for root; and the bus, where that is missing.
const PRIVATE: &str = "/run/systemd/private";
const BUS: &str = "/run/dbus/system_bus_socket";
/// As long as runc waits for a unit.
const DEADLINE: Duration = Duration::from_secs(30);

const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";

pub(super) struct Bus {
    stream: UnixStream,
    serial: u32,
    /// Where messages go; empty on the private socket, which has one peer.
    destination: &'static str,
    /// Signals that came while an answer was waited for.
    signals: Vec<Message>,
    start: Instant,
}

/// A refusal: D-Bus's name for it, and the text.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) name: String,
    pub(super) text: String,
}

fn failed(action: &str) -> impl FnOnce(std::io::Error) -> CgroupError {
    let action = action.to_owned();
    move |source| CgroupError::Systemd {
        action,
        reason: source.to_string(),
    }
}

impl Bus {
    pub(super) fn connect() -> Result<Bus, CgroupError> {
        match UnixStream::connect(PRIVATE) {
            Ok(stream) => Bus::open(stream, ""),
            Err(_) => {
                let connecting = format!("connecting to {PRIVATE} and {BUS}");
                let stream = UnixStream::connect(Path::new(BUS)).map_err(failed(&connecting))?;
                let mut bus = Bus::open(stream, "org.freedesktop.systemd1")?;
                bus.register()?;
                Ok(bus)
            }
        }
    }

    fn open(mut stream: UnixStream, destination: &'static str) -> Result<Bus, CgroupError> {
        stream
            .set_read_timeout(Some(DEADLINE))
            .and_then(|()| stream.set_write_timeout(Some(DEADLINE)))
            .and_then(|()| authenticate(&mut stream))
            .map_err(failed("introducing ourselves"))?;
        Ok(Bus {
            stream,
            serial: 0,
            destination,
            signals: Vec::new(),
            start: Instant::now(),
        })
    }

    /// On the bus a name must be taken, and signals be asked for.
    fn register(&mut self) -> Result<(), CgroupError> {
        let call = |member, signature| Call {
            destination: "org.freedesktop.DBus",
            path: "/org/freedesktop/DBus",
            interface: "org.freedesktop.DBus",
            member,
            signature,
        };
        let rule = format!("type='signal',interface='{MANAGER}',member='JobRemoved'");
        let mut body = Writer::default();
        body.text(&rule);
        let answers = [
            self.call(&call("Hello", ""), &Writer::default())?,
            self.call(&call("AddMatch", "s"), &body)?,
            self.manager("Subscribe", "", &Writer::default())?,
        ];
        for answer in answers {
            answer.map_err(|refused| refused.error("registering on the bus"))?;
        }
        Ok(())
    }

    pub(super) fn manager(
        &mut self,
        member: &str,
        signature: &str,
        body: &Writer,
    ) -> Result<Result<Message, Refused>, CgroupError> {
        let call = Call {
            destination: self.destination,
            path: MANAGER_PATH,
            interface: MANAGER,
            member,
            signature,
        };
        self.call(&call, body)
    }

    /// The number of systemd's version, such as 252.
    pub(super) fn version(&mut self) -> Result<u32, CgroupError> {
        let call = Call {
            destination: self.destination,
            path: MANAGER_PATH,
            interface: "org.freedesktop.DBus.Properties",
            member: "Get",
            signature: "ss",
        };
        let mut body = Writer::default();
        body.text(MANAGER).text("Version");
        let answer = self.call(&call, &body)?;
        let answer = answer.map_err(|refused| refused.error("asking for its version"))?;
        let mut reader = answer.reader();
        reader.signature()?;
        let text = reader.text()?;
        let digits = text.trim_start_matches(|c: char| !c.is_ascii_digit());
        let end = digits.find(|c: char| !c.is_ascii_digit());
        digits[..end.unwrap_or(digits.len())]
            .parse()
            .map_err(|_| wire::malformed())
    }

    fn call(
        &mut self,
        call: &Call<'_>,
        body: &Writer,
    ) -> Result<Result<Message, Refused>, CgroupError> {
        self.serial += 1;
        let bytes = wire::encode(self.serial, call, body);
        let calling = format!("calling {}", call.member);
        self.stream.write_all(&bytes).map_err(failed(&calling))?;
        loop {
            let message = self.receive(&calling)?;
            match message.kind {
                wire::SIGNAL => self.signals.push(message),
                wire::REPLY if message.reply_to == self.serial => return Ok(Ok(message)),
                wire::ERROR if message.reply_to == self.serial => {
                    let text = message.reader().text().unwrap_or_default();
                    let name = message.error;
                    return Ok(Err(Refused { name, text }));
                }
                _ => {}
            }
        }
    }

    fn receive(&mut self, action: &str) -> Result<Message, CgroupError> {
        if self.start.elapsed() > DEADLINE {
            return Err(failed(action)(std::io::ErrorKind::TimedOut.into()));
        }
        let mut fixed = [0; FIXED];
        self.stream.read_exact(&mut fixed).map_err(failed(action))?;
        let mut rest = vec![0; wire::rest(&fixed)?];
        self.stream.read_exact(&mut rest).map_err(failed(action))?;
        wire::decode(&fixed, &rest)
    }

    /// Waits until a job has ended; returns how: `done`, `failed`, `canceled`…
    fn finished(&mut self, job: &str) -> Result<String, CgroupError> {
        let mut pending = std::mem::take(&mut self.signals).into_iter();
        loop {
            let message = match pending.next() {
                Some(message) => message,
                None => self.receive("waiting for its job")?,
            };
            if message.kind == wire::SIGNAL && message.member == "JobRemoved" {
                let mut reader = message.reader();
                reader.uint32()?;
                let path = reader.text()?;
                reader.text()?;
                if path == job {
                    return reader.text();
                }
            }
        }
    }

    /// Starts or stops a unit, and waits until that is done.
    pub(super) fn job(
        &mut self,
        member: &str,
        signature: &str,
        body: &Writer,
    ) -> Result<Result<String, Refused>, CgroupError> {
        match self.manager(member, signature, body)? {
            Ok(answer) => {
                let job = answer.reader().text()?;
                self.finished(&job).map(Ok)
            }
            Err(refused) => Ok(Err(refused)),
        }
    }

    pub(super) fn set_properties(
        &mut self,
        unit: &str,
        properties: &[(String, Value)],
    ) -> Result<(), CgroupError> {
        let mut body = Writer::default();
        body.text(unit).boolean(true).properties(properties);
        let answer = self.manager("SetUnitProperties", "sba(sv)", &body)?;
        let answer = answer.map_err(|r| r.error(&format!("setting properties of {unit}")));
        answer.map(drop)
    }

    /// Fails when there is nothing to reset, which is as good.
    pub(super) fn reset_failed(&mut self, unit: &str) -> Result<(), CgroupError> {
        let mut body = Writer::default();
        body.text(unit);
        self.manager("ResetFailedUnit", "s", &body).map(drop)
    }
}

impl Refused {
    pub(super) fn error(self, action: &str) -> CgroupError {
        CgroupError::Systemd {
            action: action.to_owned(),
            reason: match self.text.is_empty() {
                true => self.name,
                false => self.text,
            },
        }
    }
}

/// The peer sees our uid on the socket; we only have to claim it, in hexadecimal digits of its
/// decimal ones. All is said at once: of a BEGIN that came later, with a short message close behind
/// it, systemd takes both and then waits for more before it looks at the message.
fn authenticate(stream: &mut UnixStream) -> std::io::Result<()> {
    let uid = nix::unistd::geteuid().to_string();
    let uid: String = uid.bytes().map(|byte| format!("{byte:02x}")).collect();
    stream.write_all(format!("\0AUTH EXTERNAL {uid}\r\nBEGIN\r\n").as_bytes())?;
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\r\n") {
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
        if line.len() > 512 {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
    }
    if !line.starts_with(b"OK") {
        return Err(std::io::ErrorKind::PermissionDenied.into());
    }
    Ok(())
}
