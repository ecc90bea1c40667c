// SPDX-License-Identifier: Apache-2.0
//! Quantities: `500m`, `1Gi`, `1e3` (apimachinery, `pkg/api/resource`), compared in thousandths.

use serde_json::Value;

use super::field::FieldErrors;

/// Checks an amount of a resource: a quantity that is not negative. Its thousandths, if it is one.
pub(super) fn check(amount: &str, path: &str, errors: &mut FieldErrors) -> Option<i128> {
    match milli(amount) {
        None => errors.invalid(path, amount, "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"),
        Some(value) if value < 0 => {
            errors.invalid(path, amount, "must be greater than or equal to 0");
        }
        value => return value,
    }
    None
}

/// Checks the overhead of a pod or of a RuntimeClass, which is validated as limits are.
pub(super) fn check_overhead(amounts: Option<&Value>, path: &str, errors: &mut FieldErrors) {
    for (name, amount) in amounts.and_then(Value::as_object).into_iter().flatten() {
        check(
            amount.as_str().unwrap_or(""),
            &format!("{path}.limits[{name}]"),
            errors,
        );
    }
}

/// Parses a quantity into thousandths of its unit, rounded up, or `None` when it is malformed.
pub(super) fn milli(text: &str) -> Option<i128> {
    let end = text
        .char_indices()
        .find(|(at, c)| !(c.is_ascii_digit() || *c == '.' || (*at == 0 && "+-".contains(*c))))
        .map_or(text.len(), |(at, _)| at);
    let (number, suffix) = text.split_at(end);
    let (mantissa, decimals) = parse_number(number)?;
    // value = mantissa * 10^-decimals * 2^binary * 10^decimal
    let (binary, decimal) = scale(suffix)?;
    let mut value = mantissa.checked_mul(1_i128 << binary)?;
    let shift = decimal + 3 - decimals;
    let power = 10_i128.checked_pow(shift.unsigned_abs())?;
    if shift >= 0 {
        value = value.checked_mul(power)?;
    } else {
        value = value.div_euclid(power) + i128::from(value.rem_euclid(power) != 0);
    }
    Some(value)
}

fn parse_number(text: &str) -> Option<(i128, i32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = format!("{whole}{fraction}");
    if !digits.contains(|c: char| c.is_ascii_digit())
        || fraction.contains(['+', '-', '.'])
        || digits.len() > 30
    {
        return None;
    }
    Some((digits.parse().ok()?, i32::try_from(fraction.len()).ok()?))
}

fn scale(suffix: &str) -> Option<(u32, i32)> {
    Some(match suffix {
        "" => (0, 0),
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        "Ki" => (10, 0),
        "Mi" => (20, 0),
        "Gi" => (30, 0),
        "Ti" => (40, 0),
        "Pi" => (50, 0),
        "Ei" => (60, 0),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            let exponent: i32 = exponent.parse().ok()?;
            (exponent.abs() <= 18).then_some((0, exponent))?
        }
    })
}

#[cfg(test)]
mod tests {
    use super::milli;

    #[test]
    fn quantities_are_compared_by_value() {
        let same = [
            ("1", "1000m"),
            ("0.5", "500m"),
            ("1Ki", "1024"),
            ("1e3", "1k"),
            ("1.5Gi", "1536Mi"),
            (".5", "500m"),
            ("-1", "-1000m"),
        ];
        for (a, b) in same {
            assert!(milli(a).is_some(), "{a}");
            assert_eq!(milli(a), milli(b), "{a} {b}");
        }
        assert_eq!(milli("1u"), Some(1));
        for bad in ["", "x", "1x", "1.2.3", "m", "1 Gi", "--1", "1Gib"] {
            assert_eq!(milli(bad), None, "{bad}");
        }
    }
}
