// SPDX-License-Identifier: Apache-2.0
//! Error detail `host.v1.Fault` of Connect errors: a stable code of the REST API and whose fault it is.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use buffa::Message as _;
use connectrpc::{ConnectError, ErrorDetail};

use crate::host::v1::Fault;
pub use crate::host::v1::fault::Of;

/// Type name of the detail in the protocol.
const NAME: &str = "host.v1.Fault";

/// Attaches a code and whose fault it is to an error.
pub fn attach(error: ConnectError, code: &str, of: Of) -> ConnectError {
    let fault = Fault { code: code.to_owned(), of: of.into(), ..Default::default() };
    error.with_detail(ErrorDetail::from_message(NAME, &fault))
}

/// Reads the code and whose fault it is; `None` if the error has no such detail or a malformed one.
pub fn of(error: &ConnectError) -> Option<(String, Of)> {
    let detail = error.details.iter().find(|detail| detail.type_url.rsplit('/').next() == Some(NAME))?;
    let text = detail.value.as_deref()?;
    let bytes = STANDARD_NO_PAD.decode(text).or_else(|_| STANDARD.decode(text)).ok()?;
    let fault = Fault::decode_from_slice(&bytes).ok()?;
    Some((fault.code, fault.of.as_known().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_attached_is_read_again() {
        let error = attach(ConnectError::not_found("x"), "user_not_found", Of::OF_CALLER);
        assert_eq!(of(&error), Some(("user_not_found".to_owned(), Of::OF_CALLER)));
        assert_eq!(of(&ConnectError::not_found("x")), None);
    }

    #[test]
    fn malformed_details_are_none() {
        let detail = |value: Option<&str>| ErrorDetail {
            type_url: NAME.to_owned(),
            value: value.map(str::to_owned),
            debug: None,
        };
        for value in [None, Some("*"), Some("////")] {
            let error = ConnectError::internal("x").with_detail(detail(value));
            assert_eq!(of(&error), None, "{value:?}");
        }
    }
}
