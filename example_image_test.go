package smolvm_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/smolvm/smolvm"
)

// An image is made of any root filesystem: here a directory with a single program in it.
func ExampleBuildImage() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "uname"), program, 0o755); err != nil {
		log.Fatal(err)
	}
	if _, err := smolvm.BuildImage(ctx, "tiny", smolvm.BuildOptions{From: "dir:" + dir}); err != nil {
		log.Fatal(err)
	}
	defer smolvm.RemoveImage(ctx, "tiny")

	vm, err := smolvm.Launch(ctx, smolvm.Image("tiny"))
	if err != nil {
		log.Fatal(err)
	}
	defer vm.Close()
	out, err := vm.Command(ctx, "/uname").Output()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s", out)
	// Output: Linux
}
