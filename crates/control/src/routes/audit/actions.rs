// SPDX-License-Identifier: Apache-2.0
//! Names of what is recorded: derived from the ids of operations, but for a few.

use std::borrow::Cow;

use http::Method;

/// Operations whose action does not follow from their id and method; without an action they are not recorded.
const NAMED: &[(&str, Option<&str>)] = &[
    // Connections that run something.
    ("execStream", Some("command.stream")),
    ("processStream", Some("process.connect")),
    ("openTerminal", Some("terminal.open")),
    ("portStream", Some("port.connect")),
    // It ends as a sign-in, or with a provider that is connected.
    ("finishOauth", Some("account.log_in")),
    // What users do with their accounts.
    ("useLink", Some("account.use_link")),
    ("requestReset", Some("account.request_reset")),
    ("confirmReset", Some("account.confirm_reset")),
    ("changePassword", Some("account.change_password")),
    ("activateAccount", Some("account.activate")),
    ("updateMe", Some("account.update")),
    ("deleteMe", Some("account.delete")),
    // They read, though their parameters are in a body.
    ("readFile", None),
    ("streamReadFile", None),
    ("listFiles", None),
    ("statFile", None),
    // It comes every few seconds, and changes nothing but when a sandbox is paused.
    ("pingSandbox", None),
    ("streamWriteFile", Some("file.write")),
    // What administrators do is named as what teams do.
    ("deletePlatformTeam", Some("team.delete")),
    ("deletePlatformSandbox", Some("sandbox.delete")),
    ("setUserActive", Some("user.set_active")),
    ("setUserAdmin", Some("user.set_admin")),
    ("setTeamByoc", Some("team.set_byoc")),
    ("setTeamQuotas", Some("team.set_quotas")),
    ("makeDirectory", Some("directory.create")),
    ("writeContent", Some("file.write")),
];

/// Returns the action of an operation; `None` if it is not recorded.
pub(super) fn action(method: &Method, operation: &str) -> Option<Cow<'static, str>> {
    if let Some((_, action)) = NAMED.iter().find(|(id, _)| *id == operation) {
        return action.map(Cow::Borrowed);
    }
    let reads = [Method::GET, Method::HEAD, Method::OPTIONS].contains(method);
    (!reads).then(|| Cow::Owned(derived(operation)))
}

/// Derives an action from an id of a verb and what it is done to: `createSandbox` is `sandbox.create`.
fn derived(operation: &str) -> String {
    let words = words(operation);
    let (verb, things) = words.split_first().map_or(("", &[][..]), |(verb, things)| (verb.as_str(), things));
    let things = things.join("_");
    match things.as_str() {
        "" => format!("account.{verb}"),
        // As in `logIn`, which is done to nothing.
        "in" | "out" | "up" => format!("account.{verb}_{things}"),
        _ => format!("{things}.{verb}"),
    }
}

fn words(operation: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for letter in operation.chars() {
        if letter.is_ascii_uppercase() {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut() {
            word.push(letter.to_ascii_lowercase());
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::routes::Routes;

    #[test]
    fn actions_follow_from_the_ids_of_operations() {
        let of = |operation: &str| action(&Method::POST, operation);
        assert_eq!(of("createSandbox").as_deref(), Some("sandbox.create"));
        assert_eq!(of("createApiKey").as_deref(), Some("api_key.create"));
        assert_eq!(of("logIn").as_deref(), Some("account.log_in"));
        assert_eq!(of("confirmPasswordReset").as_deref(), Some("password_reset.confirm"));
        assert_eq!(of("pingSandbox"), None);
        assert_eq!(action(&Method::GET, "getSandbox"), None);
        assert_eq!(action(&Method::GET, "openTerminal").as_deref(), Some("terminal.open"));
    }

    /// Whatever the document has that changes something is recorded, under a name of two parts.
    #[test]
    fn every_operation_that_changes_something_is_recorded() {
        let routes = Routes::new(Vec::new()).expect("routes");
        let document = serde_json::to_value(routes.document()).expect("JSON");
        let recorded = crate::routes::audit::actions(routes.document());
        let left_out: BTreeSet<&str> =
            NAMED.iter().filter(|(_, action)| action.is_none()).map(|(id, _)| *id).collect();
        let mut seen = 0;
        for (path, item) in document["paths"].as_object().expect("paths") {
            for (method, operation) in item.as_object().expect("operations") {
                let id = operation["operationId"].as_str().expect("an id");
                if method == "get" || left_out.contains(id) {
                    continue;
                }
                let method = method.to_uppercase().parse::<Method>().expect("a method");
                let action =
                    recorded.get(&(method, path.clone())).unwrap_or_else(|| panic!("{id} is not recorded"));
                let (thing, verb) = action.split_once('.').unwrap_or_else(|| panic!("{id}: {action}"));
                assert!(!thing.is_empty() && !verb.is_empty(), "{id}: {action}");
                seen += 1;
            }
        }
        assert!(seen > 20, "{seen}");
    }

    #[test]
    fn what_has_a_name_of_its_own_exists() {
        let routes = Routes::new(Vec::new()).expect("routes");
        let text = routes.document().to_json().expect("JSON");
        for (id, _) in NAMED {
            assert!(text.contains(&format!("\"{id}\"")), "there is no operation {id}");
        }
    }
}
