// SPDX-License-Identifier: Apache-2.0
//! Resource quantities as whole thousandths.
//!
//! A thousandth is fine enough for CPU, the only resource that is asked for in fractions. Anything
//! finer is rounded up, as the API does.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Thousandths of a unit. `None` if the text is not a quantity; the API server does not let such
/// text in, so callers may treat it as nothing.
pub(crate) fn millis(quantity: &Quantity) -> Option<i128> {
    let text = quantity.0.trim();
    let digits_end = text
        .char_indices()
        .find(|(index, c)| !(c.is_ascii_digit() || *c == '.' || (*index == 0 && "+-".contains(*c))))
        .map_or(text.len(), |(index, _)| index);
    let (number, suffix) = text.split_at(digits_end);
    let (numerator, denominator) = scale(suffix)?;
    let negative = number.starts_with('-');
    let number = number.trim_start_matches(['+', '-']);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let digits: i128 = parse(&format!("{whole}{fraction}"))?;
    let places = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let value = digits.checked_mul(numerator)?.checked_mul(1000)?;
    let divisor = denominator.checked_mul(places)?;
    let rounded_up = (value + divisor - 1) / divisor;
    Some(if negative { -rounded_up } else { rounded_up })
}

fn parse(digits: &str) -> Option<i128> {
    if digits.len() > 30 {
        None
    } else {
        digits.parse().ok()
    }
}

/// The factor of a suffix, as a fraction.
fn scale(suffix: &str) -> Option<(i128, i128)> {
    let binary = |power: u32| (1024_i128.pow(power), 1);
    let decimal = |power: u32| (1000_i128.pow(power), 1);
    Some(match suffix {
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "" => (1, 1),
        "k" => decimal(1),
        "M" => decimal(2),
        "G" => decimal(3),
        "T" => decimal(4),
        "P" => decimal(5),
        "E" => decimal(6),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let factor = 10_i128.checked_pow(power.unsigned_abs().min(30))?;
            if power < 0 { (1, factor) } else { (factor, 1) }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_and_fractions_are_exact() {
        let check = |text: &str| millis(&Quantity(text.into()));
        assert_eq!(check("100m"), Some(100));
        assert_eq!(check("0.5"), Some(500));
        assert_eq!(check("2"), Some(2000));
        assert_eq!(check("1Ki"), Some(1_024_000));
        assert_eq!(check("1.5Gi"), Some(1_610_612_736_000));
        assert_eq!(check("1e3"), Some(1_000_000));
        assert_eq!(check("1E"), Some(1_000_000_000_000_000_000_000));
        assert_eq!(check("100u"), Some(1));
        assert_eq!(check("x"), None);
        assert_eq!(check(""), None);
        assert_eq!(check("1.2.3"), None);
    }
}
