// SPDX-License-Identifier: Apache-2.0
//! Artifacts in the messages of `host.v1`.

use wrenn_rpc::host::v1::{
    __buffa::oneof::{export_artifact_response, import_artifact_request},
    ArtifactChunk, ArtifactEnd, ArtifactFile, ArtifactHead, ArtifactKind, ExportArtifactResponse,
    ImportArtifactRequest, artifact_head,
};

use super::format::{End, FORMAT, Head, Kind, Message, Name, Piece, Sum, malformed};
use crate::error::AgentError;

impl From<Message> for ExportArtifactResponse {
    fn from(message: Message) -> Self {
        use export_artifact_response::Part;
        let part = match message {
            Message::Head(head) => Part::Head(Box::new(head.into())),
            Message::Piece(piece) => Part::Chunk(Box::new(piece.into())),
            Message::End(end) => Part::End(Box::new(end.into())),
        };
        Self { part: Some(part), ..Default::default() }
    }
}

impl TryFrom<ImportArtifactRequest> for Message {
    type Error = AgentError;

    fn try_from(request: ImportArtifactRequest) -> Result<Self, AgentError> {
        use import_artifact_request::Part;
        match request.part.ok_or_else(|| malformed("a message is empty"))? {
            Part::Head(head) => Head::try_from(*head).map(Self::Head),
            Part::Chunk(chunk) => Piece::try_from(*chunk).map(Self::Piece),
            Part::End(end) => Ok(Self::End(End { sum: sum(&end.sha256)?, record: end.record })),
        }
    }
}

impl From<Head> for ArtifactHead {
    fn from(head: Head) -> Self {
        let kind = match head.kind {
            Kind::Snapshot => ArtifactKind::ARTIFACT_KIND_SNAPSHOT,
            Kind::Image => ArtifactKind::ARTIFACT_KIND_IMAGE,
        };
        let file =
            |(name, length)| artifact_head::File { file: file_of(name).into(), length, ..Default::default() };
        Self {
            kind: kind.into(),
            id: head.id,
            format: FORMAT,
            files: head.files.into_iter().map(file).collect(),
            ..Default::default()
        }
    }
}

impl TryFrom<ArtifactHead> for Head {
    type Error = AgentError;

    fn try_from(head: ArtifactHead) -> Result<Self, AgentError> {
        if head.format != FORMAT {
            return Err(malformed(format!(
                "it has format {}, and this host reads format {FORMAT}: make its agent and the one that wrote it of one \
                 release",
                head.format
            )));
        }
        let kind = match head.kind.as_known() {
            Some(ArtifactKind::ARTIFACT_KIND_SNAPSHOT) => Kind::Snapshot,
            Some(ArtifactKind::ARTIFACT_KIND_IMAGE) => Kind::Image,
            Some(ArtifactKind::ARTIFACT_KIND_UNSPECIFIED) | None => {
                return Err(malformed("its kind is not known"));
            }
        };
        let named = head.files.iter().map(|file| Ok((name_of(file.file.as_known())?, file.length)));
        let files = named.collect::<Result<Vec<_>, AgentError>>()?;
        if !files.is_sorted_by(|one, next| one.0 < next.0) {
            return Err(malformed("its files are not sorted, or one is there twice"));
        }
        Ok(Self { kind, id: head.id, files: files.into_iter().collect() })
    }
}

impl From<Piece> for ArtifactChunk {
    fn from(piece: Piece) -> Self {
        Self {
            file: file_of(piece.file).into(),
            index: piece.index,
            sha256: piece.sum.to_vec(),
            length: piece.length,
            data: piece.data,
            ..Default::default()
        }
    }
}

impl TryFrom<ArtifactChunk> for Piece {
    type Error = AgentError;

    fn try_from(chunk: ArtifactChunk) -> Result<Self, AgentError> {
        let (file, sum) = (name_of(chunk.file.as_known())?, sum(&chunk.sha256)?);
        Ok(Self { file, index: chunk.index, sum, length: chunk.length, data: chunk.data })
    }
}

impl From<End> for ArtifactEnd {
    fn from(end: End) -> Self {
        Self { record: end.record, sha256: end.sum.to_vec(), ..Default::default() }
    }
}

fn file_of(name: Name) -> ArtifactFile {
    match name {
        Name::Disk => ArtifactFile::ARTIFACT_FILE_DISK,
        Name::Memory => ArtifactFile::ARTIFACT_FILE_MEMORY,
        Name::State => ArtifactFile::ARTIFACT_FILE_STATE,
    }
}

fn name_of(file: Option<ArtifactFile>) -> Result<Name, AgentError> {
    match file {
        Some(ArtifactFile::ARTIFACT_FILE_DISK) => Ok(Name::Disk),
        Some(ArtifactFile::ARTIFACT_FILE_MEMORY) => Ok(Name::Memory),
        Some(ArtifactFile::ARTIFACT_FILE_STATE) => Ok(Name::State),
        Some(ArtifactFile::ARTIFACT_FILE_UNSPECIFIED) | None => Err(malformed("a file of it is not known")),
    }
}

fn sum(bytes: &[u8]) -> Result<Sum, AgentError> {
    bytes.try_into().map_err(|_| malformed("a digest does not have 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head { kind: Kind::Snapshot, id: "s".into(), files: [(Name::Disk, 7), (Name::State, 9)].into() }
    }

    /// What is sent by one agent is what another one reads.
    #[test]
    fn messages_are_read_as_they_were_written() -> Result<(), AgentError> {
        let piece = Piece::of(Name::Memory, 3, b"content");
        let end = End { record: b"{}".to_vec(), sum: [7; 32] };
        assert_eq!(Head::try_from(ArtifactHead::from(head()))?, head());
        assert_eq!(Piece::try_from(ArtifactChunk::from(piece.clone()))?, piece);
        let part = import_artifact_request::Part::End(Box::new(end.clone().into()));
        let request = ImportArtifactRequest { part: Some(part), ..Default::default() };
        assert_eq!(Message::try_from(request)?, Message::End(end));
        Ok(())
    }

    #[test]
    fn what_is_not_of_the_format_is_refused() {
        let good = || ArtifactHead::from(head());
        let reversed = |mut head: ArtifactHead| {
            head.files.reverse();
            head
        };
        let twice = |mut head: ArtifactHead| {
            head.files.push(head.files[1].clone());
            head
        };
        let bad = [
            ArtifactHead { format: 2, ..good() },
            ArtifactHead { kind: ArtifactKind::ARTIFACT_KIND_UNSPECIFIED.into(), ..good() },
            reversed(good()),
            twice(good()),
        ];
        for head in bad {
            assert!(Head::try_from(head.clone()).is_err(), "{head:?}");
        }
        let chunk = || ArtifactChunk::from(Piece::of(Name::Disk, 0, b"x"));
        for chunk in [
            ArtifactChunk { sha256: vec![0; 31], ..chunk() },
            ArtifactChunk { file: ArtifactFile::ARTIFACT_FILE_UNSPECIFIED.into(), ..chunk() },
        ] {
            assert!(Piece::try_from(chunk).is_err());
        }
        assert!(Message::try_from(ImportArtifactRequest::default()).is_err());
    }
}
