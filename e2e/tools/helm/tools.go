//go:build tools

// Package tools names helm, so that `go mod tidy` keeps go.sum whole. It is never built itself:
// see ../build.
package tools

import _ "helm.sh/helm/v3/cmd/helm"
