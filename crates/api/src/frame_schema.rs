// SPDX-License-Identifier: Apache-2.0
//! Schemas of the frames of a WebSocket: objects that a field `type` tells apart.

use utoipa::openapi::{
    Ref, RefOr, Schema,
    schema::{Discriminator, ObjectBuilder, OneOfBuilder, Type},
};

/// The schema of one frame: its fields, and `type` with one of `tags`.
pub(crate) fn tagged(fields: RefOr<Schema>, tags: &[&str]) -> RefOr<Schema> {
    let RefOr::T(Schema::Object(mut object)) = fields else { return fields };
    let tag = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(tags.iter().copied()));
    object.properties.shift_insert(0, "type".to_owned(), RefOr::T(tag.build().into()));
    object.required.insert(0, "type".to_owned());
    RefOr::T(object.into())
}

/// One of the frames `names`, each with its value of `type`.
pub(crate) fn one_of(description: &str, names: &[(&str, &str)]) -> RefOr<Schema> {
    let path = |name: &str| Ref::from_schema_name(name).ref_location;
    let mapping: Vec<_> = names.iter().map(|(tag, name)| (*tag, path(name))).collect();
    let mut schemas: Vec<_> = names.iter().map(|(_, name)| *name).collect();
    schemas.dedup();
    let one =
        schemas.into_iter().fold(OneOfBuilder::new(), |one, name| one.item(Ref::from_schema_name(name)));
    let discriminator = Discriminator::with_mapping("type", mapping);
    RefOr::T(one.description(Some(description)).discriminator(Some(discriminator)).build().into())
}

/// The schema of a frame without fields.
pub(crate) fn bare(description: &str, tag: &str) -> RefOr<Schema> {
    tagged(RefOr::T(ObjectBuilder::new().description(Some(description)).build().into()), &[tag])
}
