// SPDX-License-Identifier: Apache-2.0
//! Deserializers of the integer fields of requests, as JSON Schema defines integers: `21.0` is one too. Their errors name
//! the field and its bounds.

use std::{fmt, fmt::Display};

use serde::{Deserializer, de};

/// Field with its bounds. What is an integer of 32 bits is compared with them later, when the request is carried out.
#[derive(Clone, Copy)]
struct Field {
    name: &'static str,
    min: u32,
    max: u32,
}

impl Field {
    fn outside<E: de::Error>(self, value: impl Display) -> E {
        let Self { name, min, max } = self;
        E::custom(format_args!("{name} is {value}: it must be a whole number, {min} to {max}"))
    }
}

impl Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to be a whole number, {} to {}", self.name, self.min, self.max)
    }
}

impl de::Visitor<'_> for Field {
    type Value = u32;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fmt(f)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<u32, E> {
        u32::try_from(value).map_err(|_| self.outside(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<u32, E> {
        u32::try_from(value).map_err(|_| self.outside(value))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<u32, E> {
        if value.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&value) {
            return Ok(value as u32);
        }
        Err(self.outside(value))
    }
}

struct Optional(Field);

impl<'de> de::Visitor<'de> for Optional {
    type Value = Option<u32>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, or null", self.0)
    }

    fn visit_none<E: de::Error>(self) -> Result<Option<u32>, E> {
        Ok(None)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Option<u32>, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<u32>, D::Error> {
        deserializer.deserialize_any(self.0).map(Some)
    }
}

macro_rules! fields {
    ($($(#[$doc:meta])* $deserializer:ident = $name:literal, $min:literal..=$max:expr;)*) => {$(
        $(#[$doc])*
        pub(crate) fn $deserializer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
            deserializer.deserialize_option(Optional(Field { name: $name, min: $min, max: $max }))
        }
    )*};
}

fields! {
    /// Deserializes a number of virtual CPUs.
    vcpus = "vcpus", 1..=64;
    /// Deserializes a size of memory in MiB.
    memory_mb = "memory_mb", 128..=1_048_576;
    /// Deserializes a size of a disk in MiB.
    disk_size_mb = "disk_size_mb", 512..=1_048_576;
    /// Deserializes the number of a step.
    no_cache_from = "no_cache_from", 1..=1000;
    /// Deserializes a timeout of a sandbox in seconds.
    sandbox_timeout_sec = "timeout_sec", 0..=31_536_000;
    /// Deserializes a timeout of a command in seconds.
    command_timeout_sec = "timeout_sec", 1..=86_400;
    /// Deserializes a number of levels of directories.
    depth = "depth", 0..=64;
    /// Deserializes a lifetime of a signed URL in seconds.
    expires_in_sec = "expires_in_sec", 1..=604_800;
    /// Deserializes a timeout of a command whose output is streamed, in seconds.
    stream_timeout_sec = "timeout_sec", 0..=u32::MAX;
    /// Deserializes a time after which an idle terminal hangs up, in seconds.
    idle_timeout_sec = "idle_timeout_sec", 0..=u32::MAX;
    /// Deserializes a quota of sandboxes.
    quota_sandboxes = "sandboxes", 0..=1_000_000;
    /// Deserializes a quota of sandboxes that run.
    quota_running = "running", 0..=1_000_000;
    /// Deserializes a quota of sandboxes that are paused.
    quota_paused = "paused", 0..=1_000_000;
    /// Deserializes a quota of virtual CPUs.
    quota_vcpus = "vcpus", 0..=1_000_000;
    /// Deserializes a quota of memory in MiB.
    quota_memory_mb = "memory_mb", 0..=1_073_741_824;
    /// Deserializes a quota of disks in MiB.
    quota_disk_mb = "disk_mb", 0..=1_073_741_824;
    /// Deserializes a quota of snapshots.
    quota_snapshots = "snapshots", 0..=1_000_000;
    /// Deserializes a quota of templates.
    quota_templates = "templates", 0..=1_000_000;
    /// Deserializes a quota of builds.
    quota_builds = "builds", 0..=1_000_000;
    /// Deserializes a quota of creates in a minute.
    quota_creates_per_minute = "creates_per_minute", 0..=1_000_000;
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use utoipa::PartialSchema;

    use crate::{CreateSandbox, ExecRequest, ResumeSandbox, SignFile, UpdateSandbox};

    fn vcpus(json: &str) -> Result<Option<u32>, ()> {
        let parsed = serde_json::from_str::<CreateSandbox>(&format!(r#"{{"vcpus":{json}}}"#));
        parsed.map(|parsed| parsed.vcpus).map_err(drop)
    }

    #[test]
    fn whole_numbers_in_any_notation() {
        assert_eq!(vcpus("21"), Ok(Some(21)));
        assert_eq!(vcpus("21.0"), Ok(Some(21)));
        assert_eq!(vcpus("2.1e1"), Ok(Some(21)));
        assert_eq!(vcpus("null"), Ok(None));
        for bad in ["21.5", "-1", "-1.0", "\"21\"", "4294967296", "1e300", "true", "[]"] {
            assert_eq!(vcpus(bad), Err(()), "{bad}");
        }
    }

    /// Checks the errors of each integer field of a request, and returns the number of these fields.
    fn errors_name_the_bounds<T: PartialSchema + serde::de::DeserializeOwned>(request: &Value) -> usize {
        let schema = serde_json::to_value(T::schema()).expect("JSON");
        let fields = schema["properties"].as_object().expect("properties").iter();
        let bounded = fields.filter(|(_, field)| field["maximum"].is_number());
        let checked = bounded.map(|(name, field)| {
            for wrong in [json!(-1), json!(0.5), json!("7"), json!(u64::MAX), json!([])] {
                let mut body = request.clone();
                body[name] = wrong;
                let error = serde_json::from_value::<T>(body).err().expect("an error").to_string();
                let bounds = format!("{} to {}", field["minimum"], field["maximum"]);
                assert!(error.contains(name) && error.contains(&bounds), "{error}");
            }
        });
        checked.count()
    }

    #[test]
    fn errors_name_the_field_and_the_bounds_of_its_schema() {
        assert_eq!(errors_name_the_bounds::<CreateSandbox>(&json!({})), 4);
        assert_eq!(errors_name_the_bounds::<ResumeSandbox>(&json!({})), 1);
        assert_eq!(errors_name_the_bounds::<UpdateSandbox>(&json!({})), 1);
        assert_eq!(errors_name_the_bounds::<ExecRequest>(&json!({"cmd": "true"})), 1);
        assert_eq!(errors_name_the_bounds::<SignFile>(&json!({"path": "a", "operation": "read"})), 1);
    }
}
