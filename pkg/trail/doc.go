// Package trail is the format of the audit trail, and reading it.
//
// A trail is the documents under one prefix's _manifests/: manifests, which list
// records, and digests, each of which names the manifests since the last digest
// and the digest before it. The digests of one state are a chain. docs/FORMAT.md
// describes the documents.
//
// Trail reads them from a Library, which is a bucket or a directory of copies:
// the chains that there are (Chains, Index), one digest or manifest (Digest,
// Records), the newest record of each path (Newest), all records of some paths
// (History), and what a chain says of the objects that it wrote (Archived). It
// checks what it reads against the hashes that the trail itself names; whether
// all of it is forged is for internal/verify to judge.
package trail
