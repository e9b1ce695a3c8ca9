//! What makes a GPU slow that works: its link to the host, its power and clocks, and others that use it.

use super::Check;
use crate::cuda::Condition;
use std::path::Path;

/// The link of the device at a PCI address, as the system below `root` tells it.
pub fn link(root: &Path, name: &str, address: &str) -> Option<Check> {
    let folder = root.join("sys/bus/pci/devices").join(address);
    let read =
        |file: &str| std::fs::read_to_string(folder.join(file)).ok().map(|text| text.trim().to_owned());
    let lanes = |file: &str| read(file)?.parse::<u32>().ok();
    let speed = |file: &str| read(file)?.split_whitespace().next()?.parse::<f64>().ok();
    let (width, most_lanes) = (lanes("current_link_width")?, lanes("max_link_width")?);
    let (now, most) = (speed("current_link_speed")?, speed("max_link_speed")?);
    let name = format!("{name}, PCIe");
    let generation =
        |speed| generation(speed).map_or(format!("{speed} GT/s"), |number| format!("generation {number}"));
    let found = format!("{width} lanes of {most_lanes}, {} of {}", generation(now), generation(most));
    Some(match (width < most_lanes, now < most) {
        (true, _) => Check::slow(
            &name,
            found,
            "fewer lanes than the device has: loading, and experts in host memory, are slower; try another slot, or seat it anew",
        ),
        (false, true) => Check::found(&name, format!("{found} (an idle device lowers it by itself)")),
        (false, false) => Check::found(&name, found),
    })
}

/// The generation of PCIe that has this speed in GT/s.
fn generation(speed: f64) -> Option<usize> {
    const SPEEDS: [f64; 6] = [2.5, 5.0, 8.0, 16.0, 32.0, 64.0];
    SPEEDS.iter().position(|&known| known == speed).map(|index| index + 1)
}

/// What holds the device back at the moment, and who else uses it.
pub fn condition(name: &str, condition: &Condition) -> Vec<Check> {
    let mut checks = Vec::new();
    if let (Some(limit), Some(usual)) = (condition.power_limit, condition.usual_power_limit) {
        let watts = |milliwatts: u32| f64::from(milliwatts) / 1000.0;
        let found = format!("at most {:.0} W, usually {:.0}", watts(limit), watts(usual));
        let name = format!("{name}, power");
        checks.push(match limit < usual {
            true => Check::slow(&name, found, "somebody lowered it: nvidia-smi -pl sets it, as root"),
            false => Check::found(&name, found),
        });
    }
    if let (Some(clock), Some(most)) = (condition.clock, condition.most_clock) {
        let found = format!("{clock} MHz of {most}");
        let name = format!("{name}, clock");
        let held = held_back(condition.reasons.unwrap_or_default());
        checks.push(match held.is_empty() {
            true => Check::found(&name, found),
            false => Check::slow(
                &name,
                format!("{found}; held back by {}", held.join(", ")),
                "nvidia-smi -q -d PERFORMANCE,CLOCK,TEMPERATURE,POWER has more of it",
            ),
        });
    }
    if let Some(processes) = condition.processes {
        let name = format!("{name}, others");
        checks.push(match processes {
            0 => Check::found(&name, "nobody else computes on it"),
            count => Check::slow(
                &name,
                format!("{count} other processes compute on it"),
                "they share its time and its memory: nvidia-smi names them",
            ),
        });
    }
    checks
}

/// What holds clocks back, of NVML's reasons (`nvmlClocksEventReason…`); that nobody asks for more is none.
fn held_back(reasons: u64) -> Vec<&'static str> {
    const REASONS: [(u64, &str); 7] = [
        (0x2, "a setting of the clocks"),
        (0x4, "the power limit"),
        (0x8, "the hardware (heat or power)"),
        (0x20, "heat"),
        (0x40, "heat, by the hardware"),
        (0x80, "the power supply's brake"),
        (0x10, "other GPUs of its group"),
    ];
    REASONS.iter().filter(|(bit, _)| reasons & bit != 0).map(|(_, words)| *words).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::tree;
    use super::*;

    #[test]
    fn a_link_with_fewer_lanes_is_slow() {
        let of = |width: &str, speed: &str| {
            let folder = "sys/bus/pci/devices/0000:18:00.0";
            let files = [
                ("current_link_width", width),
                ("max_link_width", "16\n"),
                ("current_link_speed", speed),
                ("max_link_speed", "32.0 GT/s PCIe\n"),
            ];
            let files = files.map(|(name, text)| (format!("{folder}/{name}"), text));
            let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (&path[..], *text)).collect();
            link(tree(&files).path(), "cuda:0", "0000:18:00.0").map(|check| (check.ok, check.found))
        };
        let full = "16 lanes of 16, generation 5 of generation 5";
        assert_eq!(of("16\n", "32.0 GT/s PCIe\n"), Some((true, full.into())));
        let half = "8 lanes of 16, generation 4 of generation 5";
        assert_eq!(of("8\n", "16.0 GT/s PCIe\n"), Some((false, half.into())));
        let (ok, found) = of("16\n", "2.5 GT/s PCIe\n").unwrap();
        assert!(ok && found.contains("generation 1 of generation 5 (an idle"), "{found}");
        assert_eq!((of("16\n", "Unknown\n"), of("", "32.0 GT/s PCIe\n")), (None, None));
        assert!(link(tree(&[]).path(), "cuda:0", "0000:18:00.0").is_none());
    }

    #[test]
    fn what_holds_a_device_back_is_told() {
        let checks = |condition: Condition| -> Vec<(bool, String)> {
            super::condition("cuda:0", &condition).into_iter().map(|check| (check.ok, check.found)).collect()
        };
        let idle = Condition {
            power_limit: Some(700_000),
            usual_power_limit: Some(700_000),
            clock: Some(345),
            most_clock: Some(1980),
            reasons: Some(0x1),
            processes: Some(0),
        };
        assert!(checks(idle.clone()).iter().all(|(ok, _)| *ok));
        let capped =
            Condition { power_limit: Some(350_000), reasons: Some(0x4 | 0x20), processes: Some(2), ..idle };
        assert_eq!(
            checks(capped),
            [
                (false, "at most 350 W, usually 700".to_owned()),
                (false, "345 MHz of 1980; held back by the power limit, heat".to_owned()),
                (false, "2 other processes compute on it".to_owned()),
            ]
        );
        assert_eq!(checks(Condition::default()), []);
    }
}
