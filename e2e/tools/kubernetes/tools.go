//go:build tools

// Package tools names the commands of the control plane that the tests, the play and the benches
// start, so that `go mod tidy` keeps go.sum whole. It is never built itself: see ../build.
package tools

import (
	_ "go.etcd.io/etcd/server/v3"
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kube-controller-manager"
	_ "k8s.io/kubernetes/cmd/kubectl"
)
