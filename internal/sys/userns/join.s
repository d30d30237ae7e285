// Empty: lets join.go declare functions of the runtime without bodies.
