package smolvm_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/smolvm/smolvm"
)

// A web server in a VM, opened on localhost.
func Example() {
	ctx := context.Background()
	vm, err := smolvm.Launch(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer vm.Close() // stops and deletes it

	if _, err := vm.Run(ctx, "echo hello from the guest >index.html; python3 -m http.server 8000 &"); err != nil {
		log.Fatal(err)
	}
	if err := vm.WaitPort(ctx, 8000); err != nil {
		log.Fatal(err)
	}
	port, err := vm.ExposeLocal(ctx, 8000)
	if err != nil {
		log.Fatal(err)
	}
	resp, err := http.Get(fmt.Sprintf("http://localhost:%d", port))
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(os.Stdout, resp.Body); err != nil {
		log.Fatal(err)
	}
	// Output: hello from the guest
}

// A command that fails is a result, not an error.
func ExampleVM_Run() {
	ctx := context.Background()
	vm, err := smolvm.Launch(ctx, smolvm.Env("GREETING=hello"))
	if err != nil {
		log.Fatal(err)
	}
	defer vm.Close()

	res, err := vm.Run(ctx, "echo $GREETING; exit 3")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%q, exit code %d\n", res.Stdout, res.ExitCode)
	// Output: "hello\n", exit code 3
}

// A VM that is there for one command.
func ExampleMain() {
	ctx := context.Background()
	vm, err := smolvm.Launch(ctx, smolvm.Main("sh", "-c", "exit 3"), smolvm.Restart(smolvm.OnFailure(2)))
	if err != nil {
		log.Fatal(err)
	}
	defer vm.Close()

	main, err := vm.WaitMain(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("exit code %d after %d restarts\n", *main.ExitCode, main.Restarts)
	// Output: exit code 3 after 2 restarts
}

// Input and output are streams, as with os/exec.
func ExampleVM_Command() {
	ctx := context.Background()
	vm, err := smolvm.Launch(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer vm.Close()

	cmd := vm.Command(ctx, "tr", "a-z", "A-Z")
	cmd.Stdin = strings.NewReader("loud\n")
	cmd.Stdout = os.Stdout
	if err := cmd.Run(); err != nil {
		log.Fatal(err)
	}
	// Output: LOUD
}

// A busy host port is stepped around, and the caller sees which one is in use.
func ExampleVM_ExposeLocal() {
	ctx := context.Background()
	vm, err := smolvm.Launch(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer vm.Close()

	first, err := vm.ExposeLocal(ctx, 8000, smolvm.HostPort(18000))
	if err != nil {
		log.Fatal(err)
	}
	second, err := vm.ExposeLocal(ctx, 9000, smolvm.HostPort(18000))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(first == second)
	if err := vm.UnexposeLocal(ctx, first, 8000); err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(vm.Forwards()), smolvm.PortAvailable(first))
	// Output:
	// false
	// 1 true
}

// A range of ports and a UDP port at once: all of them are exposed, or none.
func ExampleVM_ExposeAll() {
	ctx := context.Background()
	vm, err := smolvm.Launch(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer vm.Close()

	var specs []smolvm.PortSpec
	for _, text := range []string{"18000-18002:8000-8002", "15353:53/udp"} {
		spec, err := smolvm.ParsePortSpec(text)
		if err != nil {
			log.Fatal(err)
		}
		specs = append(specs, spec)
	}
	forwards, err := vm.ExposeAll(ctx, specs, smolvm.Strict())
	if err != nil {
		log.Fatal(err)
	}
	for _, f := range forwards {
		fmt.Printf("%d -> %d/%s %s\n", f.HostPort, f.GuestPort, f.Protocol, f.Health)
	}
	if err := vm.UnexposeAll(ctx, forwards); err != nil {
		log.Fatal(err)
	}
	// Output:
	// 18000 -> 8000/tcp waiting
	// 18001 -> 8001/tcp waiting
	// 18002 -> 8002/tcp waiting
	// 15353 -> 53/udp waiting
}

// Following a port until a server in the guest answers on it.
func ExampleVM_ForwardEvents() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	vm, err := smolvm.Launch(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer vm.Close()

	if _, err := vm.ExposeLocal(ctx, 8000); err != nil {
		log.Fatal(err)
	}
	events, err := vm.ForwardEvents(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for e := range events {
		fmt.Println(e.Kind, e.Forward.Health)
		if e.Forward.Health == smolvm.Active {
			break
		}
		if _, err := vm.Run(ctx, "python3 -m http.server 8000 &"); err != nil {
			log.Fatal(err)
		}
	}
	// Output:
	// exposed waiting
	// changed active
}

// A VM that is kept can be opened again, by this program or another.
func ExampleOpen() {
	ctx := context.Background()
	made, err := smolvm.Launch(ctx, smolvm.Name("notes"), smolvm.Keep())
	if err != nil {
		log.Fatal(err)
	}
	if _, err := made.Run(ctx, "echo remember >note"); err != nil {
		log.Fatal(err)
	}
	if err := made.Close(); err != nil { // stops it, but keeps it
		log.Fatal(err)
	}

	vm, err := smolvm.Open(ctx, "notes")
	if err != nil {
		log.Fatal(err)
	}
	if err := vm.Start(ctx); err != nil {
		log.Fatal(err)
	}
	res, err := vm.Run(ctx, "cat note")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(res.Stdout)
	if err := vm.Delete(ctx); err != nil {
		log.Fatal(err)
	}
	// Output: remember
}

// Files go in and out without a port, a mount or an agent of yours.
func ExampleVM_WriteFile() {
	ctx := context.Background()
	vm, err := smolvm.Launch(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer vm.Close()

	if err := vm.WriteFile(ctx, "/root/notes.txt", []byte("b\na\n"), 0o600); err != nil {
		log.Fatal(err)
	}
	if _, err := vm.Run(ctx, "sort notes.txt >sorted.txt"); err != nil {
		log.Fatal(err)
	}
	sorted, err := vm.ReadFile(ctx, "/root/sorted.txt")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(string(sorted))
	// Output:
	// a
	// b
}

// A directory is copied with all below it.
func ExampleVM_CopyTo() {
	ctx := context.Background()
	vm, err := smolvm.Launch(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer vm.Close()

	site, err := os.MkdirTemp("", "site")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(site)
	if err := os.WriteFile(filepath.Join(site, "index.html"), []byte("hello\n"), 0o644); err != nil {
		log.Fatal(err)
	}
	if err := vm.CopyTo(ctx, site, "/srv/site"); err != nil {
		log.Fatal(err)
	}
	res, err := vm.Run(ctx, "ls /srv/site")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(res.Stdout)
	// Output: index.html
}

// A service of the guest can be reached without a port of the host.
func ExampleVM_Dial() {
	ctx := context.Background()
	vm, err := smolvm.Launch(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer vm.Close()

	conn, err := vm.Dial(ctx, "localhost:22")
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	greeting := make([]byte, len("SSH-2.0-"))
	if _, err := io.ReadFull(conn, greeting); err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(greeting))
	// Output: SSH-2.0-
}

// A VM of the background outlives the program: another one, or the command, finds it by its name.
func ExampleBackground() {
	ctx := context.Background()
	vm, err := smolvm.Launch(ctx, smolvm.Name("build-cache"), smolvm.Background(), smolvm.Keep())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("smolvm exec", vm.Name(), "-- uname -a")
	if err := vm.Close(); err != nil { // leaves it running
		log.Fatal(err)
	}
}
