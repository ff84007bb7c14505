package config

import (
	"slices"
	"strings"
	"testing"
)

func TestVariablesOfAKubernetesServiceArePassedOver(t *testing.T) {
	for _, prefix := range []string{"S3SYNCD", "S3SYNCD_METRICS", "S3SYNCD_SOURCES_7", "S3SYNCD_2", "S3SYNCD_TOKEN"} {
		env := []string{
			"_SERVICE_HOST=10.96.0.12", "_SERVICE_PORT=9810", "_SERVICE_PORT_HTTP_METRICS=9810", "_PORT=tcp://10.96.0.12:9810",
			"_PORT_9810_TCP=tcp://10.96.0.12:9810", "_PORT_9810_TCP_PROTO=tcp", "_PORT_9810_TCP_PORT=9810", "_PORT_9810_TCP_ADDR=10.96.0.12",
			"_PORT_53_UDP=udp://[fd00::12]:53", "_PORT_53_UDP_ADDR=fd00::12",
		}
		for i := range env {
			env[i] = prefix + env[i]
		}
		mustParse(t, minimal, env...)
	}
}

// What Kubernetes would not have written so is a mistake of the operator.
func TestVariablesThatOnlyLookLikeThoseOfAServiceAreFaults(t *testing.T) {
	for _, env := range []string{
		"S3SYNCD_PORT=9810", "S3SYNCD_PORT=https://s3.example.com:9000", "S3SYNCD_SERVICE_HOST=minio.example.com", "S3SYNCD_ADMIN_PORT=9810",
		"S3SYNCD_SERVICE_PORT=many", "S3SYNCD_PORT_9810_TCP_PROTO=http", "S3SYNCD_PORT_X_TCP=tcp://10.0.0.1:1", "S3SYNCD_SERVICE=10.0.0.1",
		"S3SYNCD_UPLOAD_WORKER=1", "S3SYNCD_PORT=tcp://", "S3SYNCD_PORT=",
	} {
		faults := parseFaults(t, minimal, env)
		if !slices.ContainsFunc(faults, func(f Fault) bool { return strings.Contains(f.Problem, "is not a variable of s3syncd") }) {
			t.Errorf("%s: %v, want that it is no variable", env, faults)
		}
	}
}
