// SPDX-License-Identifier: Apache-2.0
//! The certificate authority and the one way to get a certificate from it.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use x509_parser::{extensions::GeneralName, prelude::X509Certificate};

use super::{PkiError, files};

/// How long a leaf certificate is valid.
const LEAF_DAYS: i64 = 365;
/// How long the authority is valid.
const AUTHORITY_DAYS: i64 = 3650;
/// A leaf with less than this left is made anew at start.
const RENEW_BEFORE_DAYS: i64 = 90;

/// What a certificate says about its holder.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    /// Common name: the user name for the API server.
    pub(crate) name: String,
    /// Organisation: the group for the API server.
    pub(crate) group: Option<&'static str>,
    /// Names and addresses to serve under. Empty for a client certificate.
    pub(crate) serves: BTreeSet<String>,
}

impl Identity {
    /// A client: a user in a group.
    pub(crate) fn client(name: &str, group: Option<&'static str>) -> Self {
        Self {
            name: name.to_owned(),
            group,
            serves: BTreeSet::new(),
        }
    }
}

/// A certificate and its key, as files.
#[derive(Debug, Clone)]
pub(crate) struct KeyFiles {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

impl KeyFiles {
    pub(crate) fn named(dir: &Path, name: &str) -> Self {
        Self {
            cert: dir.join(format!("{name}.crt")),
            key: dir.join(format!("{name}.key")),
        }
    }
}

/// The authority: signs certificates of the cluster.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    /// Loads the authority from `<dir>/ca.crt` and `ca.key`, or makes it. Idempotent.
    ///
    /// A damaged file is an error and never replaced: every credential in use depends on it.
    pub(crate) fn open(dir: &Path) -> Result<Self, PkiError> {
        files::private_dir(dir)?;
        let files = KeyFiles::named(dir, "ca");
        if !files.cert.exists() || !files.key.exists() {
            make_authority(&files)?;
        }
        let pem = files::read(&files.cert)?;
        let damaged = |what, path: &Path, source: rcgen::Error| PkiError::Damaged {
            path: path.to_owned(),
            what,
            reason: source.to_string(),
        };
        let key = KeyPair::from_pem(&files::read(&files.key)?)
            .map_err(|e| damaged("key", &files.key, e))?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key)
            .map_err(|e| damaged("certificate", &files.cert, e))?;
        Ok(Self { issuer, pem })
    }

    /// The authority's certificate, PEM.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// Makes sure that `files` hold a certificate for `identity` that is good for a while.
    /// Returns whether it was made anew.
    pub(crate) fn ensure(&self, files: &KeyFiles, identity: &Identity) -> Result<bool, PkiError> {
        if self.is_good(files, identity) {
            return Ok(false);
        }
        let fail = |source| PkiError::Make {
            name: identity.name.clone(),
            source,
        };
        let key = KeyPair::generate().map_err(fail)?;
        let cert = leaf(identity)
            .and_then(|params| params.signed_by(&key, &self.issuer))
            .map_err(fail)?;
        files::write(&files.key, &key.serialize_pem(), 0o600)?;
        files::write(&files.cert, &cert.pem(), 0o644)?;
        Ok(true)
    }

    /// Whether the files hold a pair that still says what `identity` says, and is ours.
    fn is_good(&self, files: &KeyFiles, identity: &Identity) -> bool {
        let (Ok(cert), Ok(key)) = (files::read(&files.cert), files::read(&files.key)) else {
            return false;
        };
        let Ok(key) = KeyPair::from_pem(&key) else {
            return false;
        };
        let (Some(cert), Some(ca)) = (der(&cert), der(&self.pem)) else {
            return false;
        };
        let (Ok((_, cert)), Ok((_, ca))) = (
            x509_parser::parse_x509_certificate(&cert),
            x509_parser::parse_x509_certificate(&ca),
        ) else {
            return false;
        };
        let left = cert.validity().not_after.timestamp() - jiff::Timestamp::now().as_second();
        cert.verify_signature(Some(ca.public_key())).is_ok()
            && cert.public_key().subject_public_key.data.as_ref() == key.public_key_raw()
            && left > RENEW_BEFORE_DAYS * 86_400
            && common_name(&cert).as_deref() == Some(identity.name.as_str())
            && identity.serves.is_subset(&served_names(&cert))
    }
}

fn make_authority(files: &KeyFiles) -> Result<(), PkiError> {
    let fail = |source| PkiError::Make {
        name: "the certificate authority".to_owned(),
        source,
    };
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    set_validity(&mut params, AUTHORITY_DAYS);
    // The number keeps two clusters' authorities apart in a client's error message.
    let name = format!("podwright-ca@{}", jiff::Timestamp::now().as_second());
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().map_err(fail)?;
    let cert = params.self_signed(&key).map_err(fail)?;
    files::write(&files.key, &key.serialize_pem(), 0o600)?;
    files::write(&files.cert, &cert.pem(), 0o644)
}

fn leaf(identity: &Identity) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    set_validity(&mut params, LEAF_DAYS);
    params.distinguished_name.remove(DnType::CommonName);
    params
        .distinguished_name
        .push(DnType::CommonName, identity.name.as_str());
    if let Some(group) = identity.group {
        params
            .distinguished_name
            .push(DnType::OrganizationName, group);
    }
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.extended_key_usages = vec![if identity.serves.is_empty() {
        ExtendedKeyUsagePurpose::ClientAuth
    } else {
        ExtendedKeyUsagePurpose::ServerAuth
    }];
    params.use_authority_key_identifier_extension = true;
    for name in &identity.serves {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(name.as_str().try_into()?),
        });
    }
    Ok(params)
}

/// Valid from yesterday, because node clocks are not exact.
fn set_validity(params: &mut CertificateParams, days: i64) {
    let day = |offset: i64| {
        let at = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * offset);
        let date = at.to_zoned(jiff::tz::TimeZone::UTC).date();
        rcgen::date_time_ymd(
            i32::from(date.year()),
            u8::try_from(date.month()).expect("a month is 1 to 12"),
            u8::try_from(date.day()).expect("a day is 1 to 31"),
        )
    };
    params.not_before = day(-1);
    params.not_after = day(days);
}

/// The first certificate of a PEM text, as DER.
fn der(pem: &str) -> Option<Vec<u8>> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
    Some(pem.contents)
}

fn common_name(cert: &X509Certificate<'_>) -> Option<String> {
    let name = cert.subject().iter_common_name().next()?;
    name.as_str().ok().map(str::to_owned)
}

fn served_names(cert: &X509Certificate<'_>) -> BTreeSet<String> {
    let Ok(Some(extension)) = cert.subject_alternative_name() else {
        return BTreeSet::new();
    };
    let names = extension.value.general_names.iter();
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(dns) => Some((*dns).to_owned()),
            GeneralName::IPAddress(bytes) => match bytes.len() {
                4 => <[u8; 4]>::try_from(*bytes)
                    .ok()
                    .map(|b| IpAddr::from(b).to_string()),
                16 => <[u8; 16]>::try_from(*bytes)
                    .ok()
                    .map(|b| IpAddr::from(b).to_string()),
                _ => None,
            },
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("podwright-pki-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        dir
    }

    #[test]
    fn a_certificate_is_reused_until_it_lacks_a_name() {
        let dir = scratch("reuse");
        let ca = Authority::open(&dir).expect("authority");
        let files = KeyFiles::named(&dir, "serving");
        let mut identity = Identity::client("kube-apiserver", None);
        identity.serves.insert("127.0.0.1".to_owned());
        identity.serves.insert("localhost".to_owned());
        assert!(ca.ensure(&files, &identity).expect("first"));
        let again = Authority::open(&dir).expect("authority again");
        assert!(!again.ensure(&files, &identity).expect("second"));
        identity.serves.insert("::1".to_owned());
        assert!(again.ensure(&files, &identity).expect("third"));
        std::fs::remove_dir_all(&dir).expect("clean up");
    }

    #[test]
    fn a_certificate_of_another_authority_is_replaced() {
        let dir = scratch("other");
        let files = KeyFiles::named(&dir.join("a"), "admin");
        let identity = Identity::client("admin", Some("system:masters"));
        Authority::open(&dir.join("a"))
            .and_then(|ca| ca.ensure(&files, &identity))
            .expect("first");
        let other = Authority::open(&dir.join("b")).expect("another authority");
        assert!(other.ensure(&files, &identity).expect("second"));
        std::fs::remove_dir_all(&dir).expect("clean up");
    }
}
