// SPDX-License-Identifier: Apache-2.0
//! Layout of the store of templates: all paths in it are made here.
//!
//! ```text
//! images/teams/{team}/{template}/{artifact}/manifest              what it consists of; written last
//! images/teams/{team}/{template}/{artifact}/{file}/{index}-{sha}  a chunk, whose name says what is in it
//! ```
//!
//! The team of the platform is the nil UUID.

use object_store::path::Path;
use uuid::Uuid;

/// Where the artifact of a team's template is in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) team: Uuid,
    /// Name of the template, without a tag.
    pub(super) template: String,
    pub(super) artifact: Uuid,
}

impl Place {
    /// What all objects of the artifact are below, and nothing else is.
    pub(super) fn root(&self) -> Path {
        self.path([])
    }

    /// The object that says what the artifact consists of.
    pub(super) fn manifest(&self) -> Path {
        self.path(["manifest".to_owned()])
    }

    /// The object of a chunk: a piece of a file, with the first half of the digest of the piece, which tells pieces apart; the
    /// manifest has the whole. Shorter names leave room for stores that keep an object in a file of its name.
    pub(super) fn chunk(&self, file: i32, index: u64, sha256: &str) -> Path {
        let sha256 = sha256.get(..32).unwrap_or(sha256);
        // With leading zeros, so that lists of names are in the order of the pieces.
        self.path([file.to_string(), format!("{index:010}-{sha256}")])
    }

    fn path<const N: usize>(&self, below: [String; N]) -> Path {
        let root = [
            "images".to_owned(),
            "teams".to_owned(),
            self.team.hyphenated().to_string(),
            self.template.clone(),
            self.artifact.hyphenated().to_string(),
        ];
        root.into_iter().chain(below).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::names::is_template_name;

    #[test]
    fn the_platform_has_the_nil_team() {
        let place = Place { team: Uuid::nil(), template: "python".to_owned(), artifact: Uuid::from_u128(7) };
        let root =
            "images/teams/00000000-0000-0000-0000-000000000000/python/00000000-0000-0000-0000-000000000007";
        assert_eq!(place.root().as_ref(), root);
        assert_eq!(place.manifest().as_ref(), format!("{root}/manifest"));
        assert_eq!(place.chunk(1, 12, "ab").as_ref(), format!("{root}/1/0000000012-ab"));
    }

    fn places() -> impl Strategy<Value = Place> {
        (any::<u128>(), "[A-Za-z0-9][A-Za-z0-9._-]{0,63}", any::<u128>()).prop_map(
            |(team, template, artifact)| Place {
                team: Uuid::from_u128(team),
                template,
                artifact: Uuid::from_u128(artifact),
            },
        )
    }

    proptest! {
        #[test]
        fn every_object_is_below_the_root_of_its_artifact_and_no_other(
            (one, other) in (places(), places()),
            (file, index, sha256) in (1_i32..=4, any::<u64>(), "[0-9a-f]{64}"),
        ) {
            prop_assert!(is_template_name(&one.template));
            let objects = [one.manifest(), one.chunk(file, index, &sha256)];
            for object in &objects {
                prop_assert!(object.prefix_matches(&one.root()) && *object != one.root(), "{object}");
                prop_assert_eq!(object.prefix_matches(&other.root()), one == other);
            }
            // Five parts of the artifact's own, whatever the name of the template is.
            prop_assert_eq!(one.root().parts().count(), 5);
            prop_assert_ne!(&objects[0], &objects[1]);
            prop_assert_ne!(one.chunk(file, index, &sha256), one.chunk(file, index.wrapping_add(1), &sha256));
            prop_assert_ne!(one.chunk(file, index, &sha256), one.chunk(file + 1, index, &sha256));
        }
    }
}
