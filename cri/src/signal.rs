// SPDX-License-Identifier: Apache-2.0
//! Stop signals: CRI's enumeration, an image's `STOPSIGNAL`, and the kernel's numbers.

use nix::sys::signal::Signal;

use crate::fault::{Fault, Result};
use crate::v1;

/// Numbers of the real-time range as glibc hands it out (signal(7)); the two below belong to threads.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The number of the signal that asks a container to end: the pod's wish, else the image's, else SIGTERM.
///
/// # Errors
/// When the image's text names no signal.
pub(crate) fn stop_signal(wanted: v1::Signal, image: &str) -> Result<i32> {
    match (wanted, image) {
        (v1::Signal::RuntimeDefault, "") => Ok(libc::SIGTERM),
        (v1::Signal::RuntimeDefault, image) => parse(image),
        (wanted, _) => parse(wanted.as_str_name().trim_start_matches("SIGNAL_")),
    }
}

/// Parses `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3` (or `SIGRTMINPLUS3`).
///
/// # Errors
/// When it names no signal.
pub(crate) fn parse(text: &str) -> Result<i32> {
    let bad = || Fault::invalid(format!("{text:?} is not a signal"));
    if let Ok(number) = text.parse::<i32>() {
        return (1..=RTMAX)
            .contains(&number)
            .then_some(number)
            .ok_or_else(bad);
    }
    let upper = text.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    let bare = bare.replace("PLUS", "+").replace("MINUS", "-");
    let offset = |rest: &str| rest.parse::<i32>().ok().filter(|n| (0..=30).contains(n));
    let number = match bare.as_str() {
        "RTMIN" => Some(RTMIN),
        "RTMAX" => Some(RTMAX),
        "CLD" => Some(libc::SIGCHLD),
        "POLL" => Some(libc::SIGIO),
        "IOT" => Some(libc::SIGABRT),
        _ => {
            if let Some(rest) = bare.strip_prefix("RTMIN+") {
                offset(rest).map(|n| RTMIN + n)
            } else if let Some(rest) = bare.strip_prefix("RTMAX-") {
                offset(rest).map(|n| RTMAX - n)
            } else {
                format!("SIG{bare}")
                    .parse::<Signal>()
                    .ok()
                    .map(|s| s as i32)
            }
        }
    };
    number.ok_or_else(bad)
}

/// The enumeration's value of a number, for a container's status.
pub(crate) fn wire(number: i32) -> v1::Signal {
    let name = match number {
        RTMIN => "SIGNAL_SIGRTMIN".to_owned(),
        RTMAX => "SIGNAL_SIGRTMAX".to_owned(),
        n if (RTMIN + 1..=RTMIN + 15).contains(&n) => format!("SIGNAL_SIGRTMINPLUS{}", n - RTMIN),
        n if (RTMIN..RTMAX).contains(&n) => format!("SIGNAL_SIGRTMAXMINUS{}", RTMAX - n),
        n => match Signal::try_from(n) {
            Ok(signal) => format!("SIGNAL_{}", signal.as_str()),
            Err(_) => return v1::Signal::RuntimeDefault,
        },
    };
    v1::Signal::from_str_name(&name).unwrap_or(v1::Signal::RuntimeDefault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_signal_is_understood() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("SIGIOT", 6),
        ] {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for text in ["", "0", "65", "SIGNOPE", "RTMIN+99"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_value_of_the_enumeration_has_a_number_and_comes_back() {
        for value in 1..=65 {
            let signal = v1::Signal::try_from(value).unwrap();
            let number = stop_signal(signal, "SIGHUP").unwrap();
            // Several names share a number; the way back names one of them.
            let again = wire(number);
            assert_eq!(stop_signal(again, "").unwrap(), number, "{signal:?}");
        }
        assert_eq!(
            stop_signal(v1::Signal::RuntimeDefault, "SIGQUIT").unwrap(),
            3
        );
        assert_eq!(stop_signal(v1::Signal::RuntimeDefault, "").unwrap(), 15);
    }
}
