// SPDX-License-Identifier: Apache-2.0
//! The durable side: an append-only table of changes in SQLite.
//!
//! A row is a key's content at a revision; a row without content is a deletion. WAL with
//! `synchronous=FULL` makes a commit durable before it returns. The database is locked
//! exclusively, so a second server on the same folder fails at once instead of corrupting it.

use std::{fs::DirBuilder, os::unix::fs::DirBuilderExt, path::Path};

use rusqlite::{Connection, OptionalExtension, params};

use super::{
    EventKind, StoreError,
    index::{Event, Index},
    object::Object,
};

/// Version of the tables.
const FORMAT: i64 = 1;
/// Rows that one step of a compaction deletes, so that writers wait milliseconds at most.
const COMPACT_STEP: i64 = 2000;

/// The open database.
pub(super) struct Log {
    db: Connection,
}

impl Log {
    /// Opens or makes the database and reads it into an index.
    pub(super) fn open(dir: &Path) -> Result<(Self, Index), StoreError> {
        let mut folder = DirBuilder::new();
        folder.recursive(true).mode(0o700);
        folder.create(dir).map_err(|source| StoreError::Folder {
            path: dir.to_owned(),
            source,
        })?;
        let path = dir.join("state.db");
        let fail = |source| StoreError::Open {
            path: path.clone(),
            source,
        };
        let db = Connection::open(&path).map_err(fail)?;
        prepare(&db).map_err(fail)?;
        let log = Self { db };
        log.check_format(&path, fail)?;
        let index = log.load().map_err(fail)?;
        Ok((log, index))
    }

    fn check_format(
        &self,
        path: &Path,
        fail: impl Fn(rusqlite::Error) -> StoreError,
    ) -> Result<(), StoreError> {
        let found = self.meta("format").map_err(&fail)?;
        match found {
            None => self.set_meta("format", FORMAT).map_err(fail),
            Some(FORMAT) => Ok(()),
            Some(found) => Err(StoreError::Format {
                path: path.to_owned(),
                found,
                known: FORMAT,
            }),
        }
    }

    fn meta(&self, name: &str) -> rusqlite::Result<Option<i64>> {
        self.db
            .query_row("SELECT value FROM meta WHERE name = ?1", [name], |r| {
                r.get(0)
            })
            .optional()
    }

    fn set_meta(&self, name: &str, value: i64) -> rusqlite::Result<()> {
        let sql = "INSERT INTO meta(name, value) VALUES (?1, ?2)
                   ON CONFLICT(name) DO UPDATE SET value = excluded.value";
        self.db.execute(sql, params![name, value]).map(drop)
    }

    fn load(&self) -> rusqlite::Result<Index> {
        let compacted = self.meta("compacted")?.unwrap_or(0);
        let mut index = Index::new(from_sql(compacted));
        let mut rows = self
            .db
            .prepare("SELECT revision, key, value FROM log ORDER BY revision")?;
        let mut rows = rows.query([])?;
        while let Some(row) = rows.next()? {
            let revision = from_sql(row.get(0)?);
            let key: String = row.get(1)?;
            let previous = index.get(&key).cloned();
            let event = match row.get::<_, Option<Vec<u8>>>(2)? {
                Some(bytes) => {
                    let Some(object) = Object::loaded(&key, revision, bytes) else {
                        tracing::error!(key, revision, "skipping a damaged row of the store");
                        continue;
                    };
                    let kind = if previous.is_some() {
                        EventKind::Changed
                    } else {
                        EventKind::Created
                    };
                    Event::new(kind, object.into(), previous)
                }
                None => {
                    let Some(previous) = previous else { continue };
                    let last = previous.at_revision(revision).into();
                    Event::new(EventKind::Deleted, last, Some(previous))
                }
            };
            index.apply(event.into());
        }
        Ok(index)
    }

    /// Appends a group of changes in one transaction; durable on return.
    pub(super) fn append<'a>(
        &mut self,
        events: impl Iterator<Item = &'a Event>,
    ) -> rusqlite::Result<()> {
        let group = self.db.transaction()?;
        {
            let sql = "INSERT INTO log(revision, key, value) VALUES (?1, ?2, ?3)";
            let mut insert = group.prepare_cached(sql)?;
            for event in events {
                let value = (event.kind != EventKind::Deleted).then(|| &event.object.bytes()[..]);
                insert.execute(params![to_sql(event.revision), event.object.key(), value])?;
            }
        }
        group.commit()
    }

    /// Deletes some rows that were replaced at or before `upto`. Returns whether more are left.
    ///
    /// Replaced rows go before the rows that record a deletion: the other way round, a crash in
    /// between would bring a deleted object back.
    pub(super) fn compact_step(&mut self, upto: u64) -> rusqlite::Result<bool> {
        let upto = to_sql(upto);
        let known = self.meta("compacted")?.unwrap_or(0);
        if upto > known {
            self.set_meta("compacted", upto)?;
        }
        let replaced = "DELETE FROM log WHERE revision IN (
            SELECT old.revision FROM log old WHERE old.revision <= ?1 AND EXISTS (
                SELECT 1 FROM log new WHERE new.key = old.key
                AND new.revision > old.revision AND new.revision <= ?1)
            LIMIT ?2)";
        if self.db.execute(replaced, params![upto, COMPACT_STEP])? > 0 {
            return Ok(true);
        }
        let deleted = "DELETE FROM log WHERE revision <= ?1 AND value IS NULL";
        self.db.execute(deleted, params![upto])?;
        self.db.execute_batch(
            "PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE); PRAGMA optimize;",
        )?;
        Ok(false)
    }
}

fn prepare(db: &Connection) -> rusqlite::Result<()> {
    db.execute_batch(
        "PRAGMA locking_mode = EXCLUSIVE;
         PRAGMA auto_vacuum = INCREMENTAL;
         PRAGMA journal_mode = WAL;
         PRAGMA synchronous = FULL;
         CREATE TABLE IF NOT EXISTS meta(name TEXT PRIMARY KEY, value INTEGER NOT NULL);
         CREATE TABLE IF NOT EXISTS log(
             revision INTEGER PRIMARY KEY, key TEXT NOT NULL, value BLOB);
         CREATE INDEX IF NOT EXISTS log_by_key ON log(key, revision);",
    )
}

fn to_sql(revision: u64) -> i64 {
    i64::try_from(revision).expect("a revision counts changes and stays far below 2^63")
}

fn from_sql(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or(0)
}
