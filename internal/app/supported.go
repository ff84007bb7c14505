package app

import (
	"strings"

	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/pkg/manifest"
)

// Supported names every setting of c that is part of the configuration's format
// but cannot be honored: what this release does not do yet is refused rather
// than ignored, and so is a key file that cannot be used. The error is
// config.Errors.
func Supported(c *config.Config) error {
	var faults config.Errors
	refuse := func(asked bool, key, value, accepted string) {
		if asked {
			faults = append(faults, c.Fault(key, value, "is not supported by this release", accepted))
		}
	}
	refuse(strings.HasPrefix(c.Manifest.Sign, "kms:"), "manifest.sign", c.Manifest.Sign, "none, ed25519:FILE")
	refuse(c.Admin.Page, "admin.page", "true", "false")
	refuse(c.Admin.WebConfig != "", "admin.web_config", c.Admin.WebConfig, `""`)
	if file, ok := strings.CutPrefix(c.Manifest.Sign, "ed25519:"); ok {
		if _, err := manifest.LoadEd25519(file); err != nil {
			faults = append(faults, c.Fault("manifest.sign", c.Manifest.Sign, "cannot be used: "+err.Error(), "ed25519:FILE of a PKCS #8 key that only its owner can read"))
		}
	}
	if len(faults) > 0 {
		return faults
	}
	return nil
}
