// SPDX-License-Identifier: Apache-2.0
//! Permissions of routes: declared where a route is added, checked before its handler, and written into the
//! OpenAPI document.

use axum::{
    extract::Request,
    middleware::{self, Next},
    response::Response,
};
use utoipa::openapi::{
    PathItem,
    path::{Operation, Paths},
    security::SecurityRequirement,
};
use utoipa_axum::router::UtoipaMethodRouter;

use crate::{
    caller::{Caller, Permission},
    error::Fault,
    services::Services,
};

/// Name of the security scheme in the document.
pub(super) const SCHEME: &str = "api_key";
/// Field of an operation that names its permission.
const FIELD: &str = "x-permission";

/// Declares the permission that a route needs: `.routes(needs(Permission::SandboxRead, routes!(list)))`.
pub fn needs(
    permission: Permission,
    (schemas, mut paths, methods): UtoipaMethodRouter<Services>,
) -> UtoipaMethodRouter<Services> {
    for operation in operations(&mut paths) {
        operation.security = Some(vec![SecurityRequirement::new(SCHEME, Vec::<String>::new())]);
        operation.extensions.get_or_insert_default().insert(FIELD.to_owned(), permission.as_str().into());
    }
    let check = move |caller: Caller, request: Request, next: Next| async move {
        caller.require(permission)?;
        Ok::<Response, Fault>(next.run(request).await)
    };
    (schemas, paths, methods.route_layer(middleware::from_fn(check)))
}

/// Returns the operations of these paths that declare no permission, by their path.
pub(super) fn undeclared(paths: &mut Paths) -> Vec<String> {
    let mut found = Vec::new();
    for (path, item) in &mut paths.paths {
        let declared = |operation: &mut Operation| {
            operation.extensions.as_ref().is_some_and(|fields| fields.contains_key(FIELD))
        };
        if !of_item(item).all(declared) {
            found.push(path.clone());
        }
    }
    found
}

/// Returns all operations of paths.
pub(super) fn operations(paths: &mut Paths) -> impl Iterator<Item = &mut Operation> {
    paths.paths.values_mut().flat_map(of_item)
}

fn of_item(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let all = [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete];
    all.into_iter().flatten()
}
