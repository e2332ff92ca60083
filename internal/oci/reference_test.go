package oci

import (
	"errors"
	"strings"
	"testing"
)

var someDigest = "sha256:" + strings.Repeat("0123456789abcdef", 4)

func TestParseReference(t *testing.T) {
	for text, want := range map[string]struct {
		ref      Reference
		familiar string
	}{
		"python":                                {Reference{Kind: Registry, Host: "docker.io", Name: "library/python", Tag: "latest"}, "python:latest"},
		"python:3.13-alpine":                    {Reference{Kind: Registry, Host: "docker.io", Name: "library/python", Tag: "3.13-alpine"}, "python:3.13-alpine"},
		"docker:dind":                           {Reference{Kind: Registry, Host: "docker.io", Name: "library/docker", Tag: "dind"}, "docker:dind"},
		"docker://docker.io/tar:1":              {Reference{Kind: Registry, Host: "docker.io", Name: "library/tar", Tag: "1"}, "docker.io/tar:1"},
		"docker://python":                       {Reference{Kind: Registry, Host: "docker.io", Name: "library/python", Tag: "latest"}, "python:latest"},
		"index.docker.io/library/python":        {Reference{Kind: Registry, Host: "docker.io", Name: "library/python", Tag: "latest"}, "python:latest"},
		"team/app:v1":                           {Reference{Kind: Registry, Host: "docker.io", Name: "team/app", Tag: "v1"}, "team/app:v1"},
		"ghcr.io/x/y:1":                         {Reference{Kind: Registry, Host: "ghcr.io", Name: "x/y", Tag: "1"}, "ghcr.io/x/y:1"},
		"localhost/x":                           {Reference{Kind: Registry, Host: "localhost", Name: "x", Tag: "latest"}, "localhost/x:latest"},
		"localhost:5000/x":                      {Reference{Kind: Registry, Host: "localhost:5000", Name: "x", Tag: "latest"}, "localhost:5000/x:latest"},
		"docker-daemon:5000/x":                  {Reference{Kind: Registry, Host: "docker-daemon:5000", Name: "x", Tag: "latest"}, "docker-daemon:5000/x:latest"},
		"[::1]:5000/x:y":                        {Reference{Kind: Registry, Host: "[::1]:5000", Name: "x", Tag: "y"}, "[::1]:5000/x:y"},
		"a__b/c.d/e--f_g:_X.y":                  {Reference{Kind: Registry, Host: "docker.io", Name: "a__b/c.d/e--f_g", Tag: "_X.y"}, "a__b/c.d/e--f_g:_X.y"},
		"python@" + someDigest:                  {Reference{Kind: Registry, Host: "docker.io", Name: "library/python", Digest: someDigest}, "python@" + someDigest},
		"ghcr.io/x/y:1@" + someDigest:           {Reference{Kind: Registry, Host: "ghcr.io", Name: "x/y", Tag: "1", Digest: someDigest}, "ghcr.io/x/y:1@" + someDigest},
		"oci:a/../Some Layout":                  {Reference{Kind: Layout, Path: "Some Layout"}, "some-layout:latest"},
		"oci:/srv/app-1.2:v1":                   {Reference{Kind: Layout, Path: "/srv/app-1.2", Tag: "v1"}, "app-1.2:v1"},
		"oci:/srv/app@" + someDigest:            {Reference{Kind: Layout, Path: "/srv/app", Digest: someDigest}, "app@" + someDigest},
		"oci:/srv/app:ghcr.io/x/y:1":            {Reference{Kind: Layout, Path: "/srv/app", Tag: "ghcr.io/x/y:1"}, "ghcr.io/x/y:1"},
		"oci:.":                                 {Reference{Kind: Layout, Path: "."}, "image:latest"},
		"oci-archive:/x/app.oci.tar":            {Reference{Kind: OCIArchive, Path: "/x/app.oci.tar"}, "app.oci:latest"},
		"oci-archive:x@2/app.tar:no tag!":       {Reference{Kind: OCIArchive, Path: "x@2/app.tar", Tag: "no tag!"}, "app:latest"},
		"docker-archive:/x/app.tgz":             {Reference{Kind: DockerArchive, Path: "/x/app.tgz"}, "app:latest"},
		"docker-archive:/x/app.tgz:python:3":    {Reference{Kind: DockerArchive, Path: "/x/app.tgz", Host: "docker.io", Name: "library/python", Tag: "3"}, "python:3"},
		"docker-archive:/x/app.tgz:h:1/app":     {Reference{Kind: DockerArchive, Path: "/x/app.tgz", Host: "h:1", Name: "app", Tag: "latest"}, "h:1/app:latest"},
		"tar:/x/RootFS.tar.gz":                  {Reference{Kind: Tar, Path: "/x/RootFS.tar.gz"}, "rootfs:latest"},
		"tar:a:b":                               {Reference{Kind: Tar, Path: "a:b"}, "a-b:latest"},
		"tar:/x/disk.tar":                       {Reference{Kind: Tar, Path: "/x/disk.tar"}, "docker.io/disk:latest"},
		"dir:/":                                 {Reference{Kind: Dir, Path: "/"}, "image:latest"},
		"dir:/srv/tree.d/..x..y.":               {Reference{Kind: Dir, Path: "/srv/tree.d/..x..y."}, "x.y:latest"},
		"disk:./my_disk.qcow2":                  {Reference{Kind: Disk, Path: "my_disk.qcow2"}, "my-disk:latest"},
		"docker://docker.io/localhost/x:1":      {Reference{Kind: Registry, Host: "docker.io", Name: "localhost/x", Tag: "1"}, "docker.io/localhost/x:1"},
		"docker://docker.io/library/python/x:1": {Reference{Kind: Registry, Host: "docker.io", Name: "library/python/x", Tag: "1"}, "library/python/x:1"},
	} {
		ref, err := ParseReference(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if ref != want.ref {
			t.Errorf("%q is read as %+v", text, ref)
		}
		if got := ref.Familiar(); got != want.familiar {
			t.Errorf("%q is known as %q, want %q", text, got, want.familiar)
		}
		if again, err := ParseReference(ref.String()); err != nil || again != ref {
			t.Errorf("%q is written as %q, and that is read as %+v, %v", text, ref, again, err)
		}
	}
}

func TestString(t *testing.T) {
	for text, want := range map[string]string{
		"python":               "docker://docker.io/library/python:latest",
		"x/y@" + someDigest:    "docker://docker.io/x/y@" + someDigest,
		"docker-archive:./f:x": "docker-archive:f:docker.io/library/x:latest",
		"oci:d:t":              "oci:d:t",
	} {
		if ref, err := ParseReference(text); err != nil || ref.String() != want {
			t.Errorf("%q is written as %q, %v", text, ref, err)
		}
	}
}

func TestWrongReferences(t *testing.T) {
	for text, hint := range map[string]string{
		"":                                   "say python:3.13-alpine",
		"docker://":                          "the name is missing",
		"docker.io/":                         "the name is missing",
		"Python":                             `say "python"`,
		"python:":                            "say NAME:TAG",
		"python:-x":                          "say NAME:TAG",
		"python:a b":                         "say NAME:TAG",
		"a//b":                               "not the name of an image",
		"a/../b":                             "not the name of an image",
		"a._b":                               "not the name of an image",
		"a___b":                              "not the name of an image",
		"-a":                                 "not the name of an image",
		"ä":                                  "not the name of an image",
		"my image":                           "not the name of an image",
		strings.Repeat("a", 256):             "longer than 255",
		"python:" + strings.Repeat("a", 129): "128",
		"host:port/x":                        "HOST:PORT/NAME",
		"host:/x":                            "HOST:PORT/NAME",
		":5000/x":                            "HOST:PORT/NAME",
		"user@host.com/x":                    "HOST:PORT/NAME",
		"python@md5:00":                      "sha256:",
		"python@sha256:00":                   "64 digits",
		"python@" + someDigest + "0":         "64 digits",
		"https://ghcr.io/x":                  "docker://HOST/NAME",
		"/tmp/x.tar":                         "tar:PATH",
		"./x":                                "oci:PATH",
		"rootfs.tar.gz":                      "tar:FILE",
		"./../x:1":                           "this is a path", "docker://./x": "is no host", "docker://a_b.c/x": "is no host", "[::1/x": "is no", "[a.b]/x": "is no IPv6", "[::1%2]:1/x": "is no IPv6", "h:99999/x": "is no port", "h:0/x": "is no port",
		"docker-daemon:x:1":              "docker save",
		"oci:":                           "path is missing",
		"tar:":                           "path is missing",
		"oci:x:":                         "oci:PATH:NAME",
		"docker-archive:x:A":             `say "a"`,
		"docker-archive:x@" + someDigest: "docker-archive:FILE:NAME:TAG",
		"tar:a\x00b":                     "zero byte",
	} {
		_, err := ParseReference(text)
		if !errors.Is(err, ErrReference) || !strings.Contains(err.Error(), hint) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzParseReference(f *testing.F) {
	for _, seed := range []string{
		"python:3", "docker://ghcr.io/x/y:1@" + someDigest, "oci:dir:tag", "oci-archive:f:docker.io/x/y:1", "docker-archive:f.tar:h:1/x:2",
		"tar:a/../b.tar", "dir:.", "disk:x.qcow2", "[::1]:5/x", "oci:@" + someDigest, "oci:..", "docker-daemon:1",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		ref, err := ParseReference(text)
		if err != nil {
			if !errors.Is(err, ErrReference) {
				t.Error(err)
			}
			return
		}
		if again, err := ParseReference(ref.String()); err != nil || again != ref {
			t.Errorf("%q is written as %q, and that is read as %+v, %v", text, ref, again, err)
		}
		familiar, err := ParseReference(ref.Familiar())
		if err != nil || familiar.Kind != Registry || familiar.Familiar() != ref.Familiar() {
			t.Errorf("%q is known as %q, and that is read as %+v, %v", text, ref.Familiar(), familiar, err)
		}
	})
}
