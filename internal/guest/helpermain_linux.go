package guest

// HelperMain must come first in a program that has a Server: in a process that the Server started to
// help it, it does that and never returns.
func HelperMain() {
	launchMain()
	sftpMain()
}
