//! Quantities with units, as people write them on the command line and in cluster files.
//!
//! Place: arguments of `sanlab link` and `sanlab fault`, keys of `[[link]]` and `[[event]]`. Invariants: a number without its unit is an
//! error, but for 0; what cannot be told exactly in the device's own units is refused, never rounded to nothing.
//! Source: humantime for times; SI prefixes (powers of ten) for rates, as `tc` and network hardware have them.

use std::time::Duration;

use nic_emu::device::MTU_BYTES;

/// The length of a queue that holds whatever comes.
const NO_LIMIT: &str = "no limit";

/// Time with its unit, in nanoseconds: `25 us`, `1ms`, `1 min 30 s`.
pub(crate) fn time_ns(text: &str) -> Result<u64, String> {
    if text.trim() == "0" {
        return Ok(0);
    }
    let wrong = || format!("`{text}` is no time; write it as `25 us`, `1 ms` or `2 s`");
    let time = humantime::parse_duration(text.trim()).map_err(|_| wrong())?;
    u64::try_from(time.as_nanos()).map_err(|_| wrong())
}

/// A share in parts per million: `0.1 %`, `250 ppm`, `0`.
pub(crate) fn share_ppm(text: &str) -> Result<u32, String> {
    let wrong =
        || format!("`{text}` is no share; write it as `0.1 %` or `250 ppm`, from 0 to 100 %");
    let trimmed = text.trim();
    if trimmed == "0" {
        return Ok(0);
    }
    // Digits that one part per million has behind the point.
    let (number, digits) = if let Some(number) = trimmed.strip_suffix('%') {
        (number, 4)
    } else if let Some(number) = trimmed.strip_suffix("ppm") {
        (number, 0)
    } else {
        return Err(wrong());
    };
    let ppm = decimal(number, digits).ok_or_else(wrong)?;
    u32::try_from(ppm)
        .ok()
        .filter(|&ppm| ppm <= 1_000_000)
        .ok_or_else(wrong)
}

/// Bits each second: `10 Gbit/s`, `1.5 Mbit/s`, `125 MB/s`, `0` for no limit.
pub(crate) fn rate_bps(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!(
            "`{text}` is no rate; write it as `10 Gbit/s`, `512 kbit/s` or `125 MB/s`, 0 for no limit"
        )
    };
    let trimmed = text.trim();
    if trimmed == "0" {
        return Ok(0);
    }
    if let Some(bits) = trimmed
        .strip_suffix("bit/s")
        .or_else(|| trimmed.strip_suffix("bps"))
    {
        let (number, digits) = match bits.chars().last() {
            Some('k') => (&bits[..bits.len() - 1], 3),
            Some('M') => (&bits[..bits.len() - 1], 6),
            Some('G') => (&bits[..bits.len() - 1], 9),
            Some('T') => (&bits[..bits.len() - 1], 12),
            _ => (bits, 0),
        };
        return decimal(number, digits)
            .filter(|&bps| bps != 0)
            .ok_or_else(wrong);
    }
    let bytes = trimmed.strip_suffix("/s").ok_or_else(wrong)?;
    let bytes = bytes.parse::<bytesize::ByteSize>().map_err(|_| wrong())?;
    bytes
        .as_u64()
        .checked_mul(8)
        .filter(|&bps| bps != 0)
        .ok_or_else(wrong)
}

/// A size in bytes: `64 MiB`, `1 MB`, `65536`.
pub(crate) fn size_bytes(text: &str) -> Result<u64, String> {
    let size = text.trim().parse::<bytesize::ByteSize>();
    size.map(|size| size.as_u64())
        .map_err(|_| format!("`{text}` is no size; write it as `64 MiB` or `1 MB`"))
}

/// The length of a queue: a size, or `no limit`, which is 0.
pub(crate) fn queue_bytes(text: &str) -> Result<u64, String> {
    if text.trim() == NO_LIMIT {
        return Ok(0);
    }
    let size = text.trim().parse::<bytesize::ByteSize>();
    let bytes = size.ok().map(|size| size.as_u64());
    bytes.filter(|&bytes| bytes != 0).ok_or_else(|| {
        format!(
            "`{text}` is no length of a queue; write it as `64 KiB` or `1 MB`, from 1 B, or `{NO_LIMIT}`"
        )
    })
}

/// An MTU of a link, in bytes.
pub(crate) fn mtu_bytes(text: &str) -> Result<u32, String> {
    let bytes = text.trim().parse().ok();
    bytes
        .filter(|bytes| MTU_BYTES.contains(bytes))
        .ok_or_else(|| {
            let (least, most) = (MTU_BYTES.start(), MTU_BYTES.end());
            format!("`{text}` is no MTU; it is a whole number of bytes from {least} to {most}")
        })
}

/// A decimal number times ten to the power of `digits`, when that is a whole number.
fn decimal(text: &str, digits: usize) -> Option<u64> {
    let text = text.trim();
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let part = part.trim_end_matches('0');
    if whole.is_empty() || !is_number(whole) || !is_number(part) || part.len() > digits {
        return None;
    }
    let scale = 10_u64.checked_pow(u32::try_from(digits).ok()?)?;
    let part = format!("{part:0<digits$}");
    let part = if part.is_empty() {
        0
    } else {
        part.parse().ok()?
    };
    whole
        .parse::<u64>()
        .ok()?
        .checked_mul(scale)?
        .checked_add(part)
}

/// A time as [`time_ns`] reads it.
pub(crate) fn show_time(ns: u64) -> String {
    if ns == 0 {
        return "0".into();
    }
    humantime::format_duration(Duration::from_nanos(ns)).to_string()
}

/// A share as [`share_ppm`] reads it.
pub(crate) fn show_share(ppm: u32) -> String {
    if ppm == 0 {
        return "0".into();
    }
    let part = format!("{:04}", ppm % 10_000);
    let part = part.trim_end_matches('0');
    let point = if part.is_empty() { "" } else { "." };
    format!("{}{point}{part} %", ppm / 10_000)
}

/// A length of a queue as [`queue_bytes`] reads it.
pub(crate) fn show_queue(bytes: u64) -> String {
    if bytes == 0 {
        return NO_LIMIT.into();
    }
    for (unit, name) in [
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1 << 10, "KiB"),
        (1_000_000_000, "GB"),
        (1_000_000, "MB"),
        (1_000, "kB"),
    ] {
        if bytes.is_multiple_of(unit) {
            return format!("{} {name}", bytes / unit);
        }
    }
    format!("{bytes} B")
}

/// A rate as [`rate_bps`] reads it.
pub(crate) fn show_rate(bps: u64) -> String {
    if bps == 0 {
        return "0".into();
    }
    for (unit, prefix) in [
        (1_000_000_000_000, "T"),
        (1_000_000_000, "G"),
        (1_000_000, "M"),
        (1_000, "k"),
    ] {
        if bps.is_multiple_of(unit) {
            return format!("{} {prefix}bit/s", bps / unit);
        }
    }
    format!("{bps} bit/s")
}

/// A size as [`size_bytes`] reads it.
pub(crate) fn show_size(bytes: u64) -> String {
    for (unit, prefix) in [
        (1 << 40, "Ti"),
        (1 << 30, "Gi"),
        (1 << 20, "Mi"),
        (1 << 10, "Ki"),
    ] {
        if bytes != 0 && bytes.is_multiple_of(unit) {
            return format!("{} {prefix}B", bytes / unit);
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_shares_and_rates_are_read_exactly() {
        for (text, ns) in [
            ("0", 0),
            ("25us", 25_000),
            ("25 us", 25_000),
            ("1ms", 1_000_000),
            ("1 min 30 s", 90_000_000_000),
            ("7 ns", 7),
        ] {
            assert_eq!(time_ns(text), Ok(ns), "{text}");
        }
        for (text, ppm) in [
            ("0", 0),
            ("0.1%", 1_000),
            ("0.1 %", 1_000),
            ("100 %", 1_000_000),
            ("0.0001%", 1),
            ("250 ppm", 250),
            ("5.50%", 55_000),
        ] {
            assert_eq!(share_ppm(text), Ok(ppm), "{text}");
        }
        for (text, bps) in [
            ("0", 0),
            ("10 Gbit/s", 10_000_000_000),
            ("1.5Mbit/s", 1_500_000),
            ("512 kbit/s", 512_000),
            ("64 bit/s", 64),
            ("2 Mbps", 2_000_000),
            ("125 MB/s", 1_000_000_000),
            ("1 KiB/s", 8_192),
        ] {
            assert_eq!(rate_bps(text), Ok(bps), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_told_how_to_be_one() {
        for text in ["", "5", "-1 ms", "1 parsec", "ms", "1.5"] {
            assert!(time_ns(text).unwrap_err().contains("25 us"), "{text}");
        }
        for text in [
            "",
            "1",
            "0.5",
            "101 %",
            "-1%",
            "0.00001 %",
            "1.5 ppm",
            "%",
            "1000001 ppm",
            "99999999999999999999 %",
        ] {
            assert!(share_ppm(text).unwrap_err().contains("0.1 %"), "{text}");
        }
        for text in [
            "",
            "10",
            "10 Gbit",
            "fast",
            "0.1 bit/s",
            "0 Gbit/s",
            "-1 kbit/s",
            "99999999999 Tbit/s",
            "5 s",
        ] {
            assert!(rate_bps(text).unwrap_err().contains("10 Gbit/s"), "{text}");
        }
    }

    #[test]
    fn what_is_shown_is_read_again() {
        for ns in [0, 1, 25_000, 1_500_000, 90_000_000_000] {
            assert_eq!(time_ns(&show_time(ns)), Ok(ns), "{}", show_time(ns));
        }
        for ppm in [0, 1, 250, 1_000, 10_000, 123_456, 1_000_000] {
            assert_eq!(share_ppm(&show_share(ppm)), Ok(ppm), "{}", show_share(ppm));
        }
        for bps in [0, 1, 1_500, 10_000_000_000, 1_000_000_000_000] {
            assert_eq!(rate_bps(&show_rate(bps)), Ok(bps), "{}", show_rate(bps));
        }
        for bytes in [0, 1, 1_500, 1 << 10, 5 << 20, 3 << 30, 8 << 40] {
            assert_eq!(
                size_bytes(&show_size(bytes)),
                Ok(bytes),
                "{}",
                show_size(bytes)
            );
        }
        assert_eq!(show_size(2 << 30), "2 GiB");
        assert_eq!(show_share(1_000), "0.1 %");
        assert_eq!(show_rate(10_000_000_000), "10 Gbit/s");
    }
}
