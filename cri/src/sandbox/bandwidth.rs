// SPDX-License-Identifier: Apache-2.0
//! The bandwidth that a pod's annotations ask for, as the capability `bandwidth` of CNI has it.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use crate::fault::{Fault, Result};

const TO_POD: &str = "kubernetes.io/ingress-bandwidth";
const FROM_POD: &str = "kubernetes.io/egress-bandwidth";
/// Bits that may go at once; containerd's figure, which is as good as no limit on bursts.
const BURST_BITS: u64 = 0xffff_ffff;
/// What the Kubernetes API takes for reasonable: 1 kbit to 1 Pbit a second.
const SMALLEST: u64 = 1_000;
const LARGEST: u64 = 1_000_000_000_000_000;

/// The capability; nothing when no annotation asks for it.
///
/// # Errors
/// When an annotation is no quantity, or an unreasonable one.
pub(crate) fn wanted(annotations: &HashMap<String, String>) -> Result<Option<Value>> {
    let mut limits = Map::new();
    for (name, direction) in [(TO_POD, "ingress"), (FROM_POD, "egress")] {
        let Some(text) = annotations.get(name) else {
            continue;
        };
        let rate = rate(text)
            .map_err(|problem| Fault::invalid(format!("annotation {name}: {text:?} {problem}")))?;
        limits.insert(format!("{direction}Rate"), json!(rate));
        limits.insert(format!("{direction}Burst"), json!(BURST_BITS));
    }
    Ok((!limits.is_empty()).then(|| limits.into()))
}

fn rate(text: &str) -> std::result::Result<u64, &'static str> {
    let rate = quantity(text).ok_or("is no quantity")?;
    if rate < SMALLEST {
        return Err("is unreasonably small (< 1kbit)");
    }
    if rate > LARGEST {
        return Err("is unreasonably large (> 1Pbit)");
    }
    Ok(rate)
}

/// A quantity of the Kubernetes API, rounded up to a whole number: `10M`, `1.5Gi`, `2e6`.
fn quantity(text: &str) -> Option<u64> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    // 2^60 and 10^18 are the largest units; 18 digits after the point are more than any of them has.
    const MOST_DIGITS: usize = 18;
    if whole.len() > MOST_DIGITS || fraction.len() > MOST_DIGITS {
        return None;
    }
    let (numerator, denominator) = unit(suffix)?;
    let part = |digits: &str| -> Option<u128> {
        Some(if digits.is_empty() {
            0
        } else {
            digits.parse().ok()?
        })
    };
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let value = part(whole)?
        .checked_mul(scale)?
        .checked_add(part(fraction)?)?;
    let value = value.checked_mul(numerator)?;
    u64::try_from(value.div_ceil(scale.checked_mul(denominator)?)).ok()
}

/// What a suffix multiplies with: numerator and denominator.
fn unit(suffix: &str) -> Option<(u128, u128)> {
    if let Some(power) = suffix
        .strip_prefix(['e', 'E'])
        .filter(|rest| !rest.is_empty())
    {
        let power: i8 = power.parse().ok()?;
        let factor = 10_u128.checked_pow(u32::from(power.unsigned_abs()))?;
        return Some(if power < 0 { (1, factor) } else { (factor, 1) });
    }
    let place = |units: &str| units.find(suffix).and_then(|at| u32::try_from(at).ok());
    Some(match suffix {
        "" => (1, 1),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "Ki" => (1 << 10, 1),
        _ if suffix.len() == 1 => (1000_u128.pow(place("MGTPE")? + 2), 1),
        _ => {
            let letter = suffix
                .strip_suffix('i')
                .filter(|letter| letter.len() == 1)?;
            let power = "MGTPE".find(letter).and_then(|at| u32::try_from(at).ok())? + 2;
            (1024_u128.pow(power), 1)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_of_the_api() {
        for (text, value) in [
            ("10M", Some(10_000_000)),
            ("1.5Gi", Some(1_610_612_736)),
            ("2e6", Some(2_000_000)),
            ("1500", Some(1500)),
            ("1500m", Some(2)),
            ("100k", Some(100_000)),
            ("4Ki", Some(4096)),
            ("1E", Some(1_000_000_000_000_000_000)),
            ("99999999999E", None),
            ("", None),
            (".", None),
            ("-1", None),
            ("1.2.3", None),
            ("10X", None),
            ("10Mb", None),
            ("1ki", None),
        ] {
            assert_eq!(quantity(text), value, "{text}");
        }
    }

    #[test]
    fn annotations_become_a_capability() {
        let of = |pairs: &[(&str, &str)]| {
            let map = pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            wanted(&map.collect())
        };
        assert_eq!(of(&[("other", "1")]).unwrap(), None);
        assert_eq!(
            of(&[(TO_POD, "1M"), (FROM_POD, "2M")]).unwrap(),
            Some(json!({"ingressRate": 1_000_000, "ingressBurst": BURST_BITS,
                "egressRate": 2_000_000, "egressBurst": BURST_BITS}))
        );
        for (text, problem) in [
            ("fast", "is no quantity"),
            ("10", "is unreasonably small (< 1kbit)"),
            ("2P", "is unreasonably large (> 1Pbit)"),
        ] {
            let error = of(&[(TO_POD, text)]).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
    }
}
