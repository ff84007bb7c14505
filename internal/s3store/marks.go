package s3store

import (
	"context"
	"maps"
	"net/url"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// marks are what a bucket's policy may ask of every write beside its encryption:
// a canned ACL, and tags.
type marks struct {
	acl  types.ObjectCannedACL // "": none
	tags url.Values
}

func newMarks(o Options) marks {
	m := marks{acl: types.ObjectCannedACL(o.ACL), tags: url.Values{}}
	for k, v := range o.Tags {
		m.tags.Set(k, v)
	}
	return m
}

// mark fills in the ACL and the tags of one write, whose SDK inputs have no
// common type.
func (m marks) mark(acl *types.ObjectCannedACL, tagging **string) {
	*acl = m.acl
	if len(m.tags) > 0 {
		*tagging = aws.String(m.tags.Encode())
	}
}

// markCopy is mark for a copy of an object that has tags of its own: they stay
// beside the configured ones. Replace says that the copy's tags are given.
func (cp *copier) markCopy(ctx context.Context, key string, has bool, acl *types.ObjectCannedACL, tagging **string) (replace bool, err error) {
	cp.marks.mark(acl, tagging)
	if !has {
		return *tagging != nil, nil
	}
	all, err := cp.tags(ctx, key)
	if err != nil {
		return false, err
	}
	maps.Copy(all, cp.marks.tags)
	*tagging = aws.String(all.Encode())
	return true, nil
}
